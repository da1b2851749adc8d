// Prompts by Ollama's own packages: an OpenAI chat request to api.ChatRequest, its parser's tools, its template.
//
// ollama_worker.py copies this file into a checkout of Ollama and runs it there. Argument: the template's file. Lines of
// stdin are `{"id", "request"}`, lines of stdout `{"id", "text"}` or `{"id", "error"}`. What stands between these calls
// in middleware/openai.go and server/routes.go is done here by hand, in the same order.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/model/parsers"
	"github.com/ollama/ollama/openai"
	"github.com/ollama/ollama/template"
)

type line struct {
	ID      string          `json:"id"`
	Request json.RawMessage `json:"request,omitempty"`
	Text    string          `json:"text,omitempty"`
	Error   string          `json:"error,omitempty"`
}

func prompt(tmpl *template.Template, request []byte) (string, error) {
	var given openai.ChatCompletionRequest
	if err := json.Unmarshal(request, &given); err != nil {
		return "", err
	}
	if len(given.Messages) == 0 {
		return "", fmt.Errorf("[] is too short - 'messages'")
	}
	converted, err := openai.FromChatRequest(given)
	if err != nil {
		return "", err
	}
	// The middleware hands the request on as JSON.
	body, err := json.Marshal(converted)
	if err != nil {
		return "", err
	}
	var chat api.ChatRequest
	if err := json.Unmarshal(body, &chat); err != nil {
		return "", err
	}
	if chat.Think == nil {
		chat.Think = &api.ThinkValue{Value: true}
	}
	if level, ok := chat.Think.Value.(string); ok && level == "max" {
		chat.Think.Value = "high"
	}
	last := &chat.Messages[len(chat.Messages)-1]
	tools := parsers.ParserForName("harmony").Init(chat.Tools, last, chat.Think)
	var text bytes.Buffer
	values := template.Values{
		Messages:   chat.Messages,
		Tools:      tools,
		Think:      chat.Think.Bool(),
		ThinkLevel: chat.Think.String(),
		IsThinkSet: true,
	}
	if err := tmpl.Execute(&text, values); err != nil {
		return "", err
	}
	return text.String(), nil
}

func main() {
	source, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	tmpl, err := template.Parse(string(source))
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	for lines.Scan() {
		var asked line
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		answer := line{ID: asked.ID}
		if answer.Text, err = prompt(tmpl, asked.Request); err != nil {
			answer.Error = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			panic(err)
		}
	}
}
