"""Cases of whole dialogues: turns, tool loops, preambles, parallel calls, built-in tools, structured answers."""

from __future__ import annotations

from building import Category, Json, answer, calls, developer, result, system, tool, user

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = tool("get_weather", "Gets the weather of a city.", CITY)
SUM = tool(
    "add",
    "Adds two numbers.",
    {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]},
)
NOW = tool("now", "The time now.", {"type": "object", "properties": {}})

QUESTIONS = (
    ("What is 2 + 2?", "Two plus two.", "4"),
    ("Name a river in France.", "The Loire is the longest.", "The Loire."),
    ("Translate 'good morning' to Spanish.", "Spanish: buenos días.", "Buenos días."),
    ("Is 91 prime?", "7 * 13 = 91, so no.", "No: 91 = 7 × 13."),
    ("Write three lines about snow.", "Short ones.", "Snow on the old roof,\nno footprint on the way home,\na lamp."),
    ("Give me JSON with a key a.", "They want JSON as text.", '{"a": 1}'),
    ("Reverse the list [1, 2, 3] in Python.", "Slicing does it.", "```python\n[1, 2, 3][::-1]\n```"),
    ("Which planet is largest?", "Jupiter.", "Jupiter."),
    ("How many minutes are in a day?", "24 * 60 = 1440.", "1,440"),
    ("Who wrote Faust?", "Goethe wrote it.", "Johann Wolfgang von Goethe."),
    ("Spell 'rhythm'.", "r-h-y-t-h-m", "R-H-Y-T-H-M"),
    ("What is the capital of Peru?", "Lima.", "Lima"),
)  # fmt: skip
CITIES = ("Oslo", "Rome", "Lima", "Kyoto", "Cairo", "Quito")


def single() -> Category:
    c = Category("single", "one question, one answer")
    for question, thought, reply in QUESTIONS:
        c.render("a thought and an answer", [user(question), answer(reply, thought)])
    for question, _, reply in QUESTIONS[:8]:
        c.render("an answer without a thought", [user(question), answer(reply)])
    for question, thought, reply in QUESTIONS[:6]:
        c.render("a system message becomes instructions", [system("Be brief."), user(question), answer(reply, thought)])
    long = " ".join(f"Step {n}: {n} squared is {n * n}." for n in range(1, 60))
    c.render("a long thought", [user("List squares."), answer("Done.", long)])
    c.render("a long answer", [user("List squares."), answer(long, "I list them.")])
    c.render("an answer with blank lines", [user("Two paragraphs."), answer("One.\n\nTwo.\n\n\nThree.", "Write them.")])
    c.render("an answer with tabs", [user("A table."), answer("a\tb\n1\t2", "Tabs.")])
    return c


def multi_turn() -> Category:
    c = Category("multi_turn", "several turns: earlier thoughts leave the prompt, every answer is trained with its own")
    for n in range(2, 6):
        for start in range(0, 12, 3):
            chosen = [QUESTIONS[(start + i) % 12] for i in range(n)]
            turns = [said for q, t, a in chosen for said in (user(q), answer(a, t))]
            c.render(f"{n} turns, each with a thought", turns)
    for start in range(0, 10, 2):
        (q1, t1, a1), (q2, t2, a2) = QUESTIONS[start : start + 2]
        c.render("a turn without a thought after one with", [user(q1), answer(a1, t1), user(q2), answer(a2)])
        c.render("a turn with a thought after one without", [user(q1), answer(a1), user(q2), answer(a2, t2)])
    for start in range(0, 9, 3):
        (q1, _, a1), (q2, _, a2), (q3, _, a3) = QUESTIONS[start : start + 3]
        messages = [user(q1), answer(a1), user(q2), answer(a2), user(q3), answer(a3)]
        c.render("three turns without thoughts", messages)
    (q1, t1, a1), (q2, t2, a2) = QUESTIONS[:2]
    c.render("two user messages in a row", [user(q1), user("In words."), answer("Four.", t1)])
    c.render("instructions before two turns", [system("Be kind."), user(q1), answer(a1, t1), user(q2), answer(a2, t2)])
    c.render(
        "the same answer twice", [user("Ready?"), answer("Yes.", "Sure."), user("Still?"), answer("Yes.", "Sure.")]
    )
    return c


def one_turn(n_calls: int, start: int, ending: bool, thoughts: str, first: int = 1) -> list[Json]:
    """A question that takes `n_calls` calls. thoughts: `all`, `first` or `none` of the actions have one."""
    messages = [user(f"Weather in {', '.join(CITIES[(start + i) % 6] for i in range(n_calls))}?")]
    for i in range(n_calls):
        city = CITIES[(start + i) % 6]
        thought = f"I look up {city}." if thoughts == "all" or (thoughts == "first" and i == 0) else None
        made = ("get_weather", f'{{"city": "{city}"}}')
        messages += [calls(made, thinking=thought, first=first + i), result(f"{(start + i) * 3} °C", first + i)]
    if ending:
        thought = "I have them all." if thoughts == "all" else None
        messages.append(answer("Here they are: " + ", ".join(str((start + i) * 3) for i in range(n_calls)), thought))
        return messages
    return messages[:-1]


def tool_loop() -> Category:
    c = Category("tool_loop", "calls to functions, their results, and the answer or the call that ends the row")
    words = {"all": "a thought before each", "first": "a thought before the first only", "none": "no thought"}
    for n_calls in range(1, 6):
        for ending in (True, False):
            for thoughts in ("all", "first", "none"):
                if (n_calls, ending, thoughts) == (1, False, "first"):
                    continue
                tail = "then the answer" if ending else "the last is the end"
                what = f"{n_calls} call{'s' * (n_calls > 1)}, {words[thoughts]}, {tail}"
                c.render(what, one_turn(n_calls, n_calls, ending, thoughts), [WEATHER])
    for earlier in (1, 2):
        for n_calls in range(1, 4):
            for ending in (True, False):
                for before in ("answers", "loops"):
                    messages: list[Json] = []
                    for turn in range(earlier):
                        q, t, a = QUESTIONS[turn]
                        loop = one_turn(1, turn, True, "all", first=turn + 1)
                        messages += loop if before == "loops" else [user(q), answer(a, t)]
                    messages += one_turn(n_calls, 3, ending, "all", first=earlier + 1)
                    c.render(f"{n_calls} calls after {earlier} turn(s) of {before}", messages, [WEATHER])
    one = [user("Add 2 and 3."), calls(("add", '{"a": 2, "b": 3}'), thinking="Call add."), result("5")]
    for text, what in (
        ('{"sum": 5}', "a JSON object"),
        ('"5"', "a JSON string"),
        ("line 1\nline 2\n", "lines"),
        ("null", "null"),
        ("[]", "an empty list"),
        ("Error: timeout", "an error text"),
        ("<b>5</b> & 'x'", "HTML and quotes"),
        ('say "5" \\ now', "quotes and backslashes"),
    ):
        c.render(f"the result is {what}", [*one[:2], result(text), answer("Five.", "Done.")], [SUM])
    for arguments, what in (
        ('{"a":2,"b":3}', "without spaces"),
        ('{\n  "a": 2,\n  "b": 3\n}', "over lines"),
        ('{"b": 3, "a": 2}', "in another order"),
        ('{"a": 2.0, "b": 3e0}', "with number spellings"),
        ('{"a": 2, "b": 3, "note": "caf\\u00e9"}', "with an escape"),
        ('{"a": 2, "b": 3, "note": "café"}', "not in ASCII"),
    ):
        row = [one[0], calls(("add", arguments), thinking="Call."), result("5"), answer("Five.", "Done.")]
        c.render(f"arguments {what} stay as written", row, [SUM])
    c.render("a call without arguments", [user("Time?"), calls(("now", "{}"), thinking="Call."), result("12:00"),
             answer("Noon.", "Done.")], [NOW])  # fmt: skip
    c.render("a follow-up question after a loop", [*one, answer("Five.", "Done."), user("Sure?"),
             answer("Yes.", "It is.")], [SUM])  # fmt: skip
    c.render("two tools in turn", [*one, calls(("now", "{}"), thinking="Now the time.", first=2), result("12:00", 2),
             answer("5 at noon.", "Both.")], [SUM, NOW])  # fmt: skip
    c.render("the same call twice", [user("Twice."), calls(("now", "{}"), thinking="Once."), result("1"),
             calls(("now", "{}"), thinking="Once.", first=2), result("1", 2), answer("Same.", "Same.")],
             [NOW])  # fmt: skip
    c.render("tools that are declared and not called", [user("Hi"), answer("Hello!", "A greeting.")], [SUM, NOW])
    c.render("a user message in an open loop", [*one, user("Hurry up."), answer("Five.", "Done.")], [SUM])
    return c


def preamble() -> Category:
    c = Category("preamble", "text beside a call is commentary that the user sees")
    done = answer("It is 4 °C.", "I have it.")
    for i, city in enumerate(CITIES):
        made = ("get_weather", f'{{"city": "{city}"}}')
        question, said = user(f"Weather in {city}?"), f"I look up {city}."
        c.render(
            "a thought, a preamble, a call", [question, calls(made, thinking="Use the tool.", text=said)], [WEATHER]
        )
        c.render("a preamble and a call without a thought", [question, calls(made, text=said)], [WEATHER])
        loop = [question, calls(made, thinking="Use the tool.", text=said), result("4 °C"), done]
        c.render("a preamble in a loop that is answered", loop, [WEATHER])
        bare = [question, calls(made, text=said), result("4 °C"), done]
        c.render("a preamble without a thought in a loop that is answered", bare, [WEATHER])
        if i < 3:
            again = calls(("get_weather", '{"city": "Bern"}'), thinking="One more.", text="And Bern.", first=2)
            c.render("two preambles in a loop", [*loop[:3], again, result("7 °C", 2), done], [WEATHER])
    return c


def parallel() -> Category:
    c = Category("parallel", "several calls in one message")
    why = "sampling stops at the first <|call|>; servers write call, call, result, result, the model samples one by one"
    for n in (2, 3):
        for start in range(3):
            named = [CITIES[(start + i) % 6] for i in range(n)]
            made = [("get_weather", f'{{"city": "{city}"}}') for city in named]
            head = [user(f"Weather in {' and '.join(named)}?"), calls(*made, thinking="All at once.")]
            results = [result(f"{i + 4} °C", i + 1) for i in range(n)]
            done = answer("Cold.", "All there.")
            arguable = {"status": "arguable", "why": why}
            c.render(f"{n} calls at once end the row", head, [WEATHER], **arguable)
            c.render(f"{n} calls at once, results, answer", [*head, *results, done], [WEATHER], **arguable)
            swapped = [*head, *reversed(results), done]
            c.render(f"{n} calls at once, results in another order", swapped, [WEATHER], **arguable)
    made = [("get_weather", '{"city": "Oslo"}'), ("now", "{}")]
    both = [user("Oslo now?"), calls(*made, thinking="Both.", text="I look.")]
    c.render("two tools at once with a preamble", both, [WEATHER, NOW], status="arguable", why=why)
    made = [("now", "{}"), ("now", "{}")]
    c.render("the same call at once", [user("Now?"), calls(*made)], [NOW], status="arguable", why=why)
    return c


def builtin() -> Category:
    c = Category("builtin", "calls to python and browser, which live on the analysis channel")
    for code in ("print(1 + 1)", "import math\nmath.pi", "x = {'a': 1}\nx", "# nothing", "print('é')"):
        asked, made = user("Run it."), calls(("python", code), thinking="I run it.")
        c.render("a call to python", [asked, made], builtin_tools=["python"])
        loop = [asked, made, result("2"), answer("2", "Read it.")]
        c.render("python's result and the answer", loop, builtin_tools=["python"])
        again = [*loop, user("Again?"), answer("Still 2.", "Same.")]
        c.render("python's call and result leave the prompt after the answer", again, builtin_tools=["python"])
    for name, arguments in (
        ("browser.search", '{"query": "gpt-oss"}'),
        ("browser.open", '{"id": 0}'),
        ("browser.find", '{"pattern": "license"}'),
    ):
        asked, made = user("Look it up."), calls((name, arguments), thinking="I look.")
        c.render(f"a call to {name}", [asked, made], builtin_tools=["browser"])
        loop = [asked, made, result("Apache 2.0"), answer("Apache 2.0.", "Found.")]
        c.render(f"{name}'s result and the answer", loop, builtin_tools=["browser"])
    for offered in (["python"], ["browser"], ["python", "browser"]):
        names = " and ".join(offered)
        greeting = [user("Hi"), answer("Hello!", "A greeting.")]
        c.render(f"{names} offered, nothing called", greeting, builtin_tools=offered)
        c.render(f"{names} offered beside a function", greeting, [WEATHER], builtin_tools=offered)
    mixed = [user("Both."), calls(("python", "1"), thinking="First."), result("1"),
             calls(("get_weather", '{"city": "Rome"}'), thinking="Then.", first=2), result("20 °C", 2),
             answer("1 and 20 °C.", "Both.")]  # fmt: skip
    c.render("python, then a function", mixed, [WEATHER], builtin_tools=["python"])
    swapped = [mixed[0], calls(("get_weather", '{"city": "Rome"}'), thinking="First."), result("20 °C"),
               calls(("python", "1"), thinking="Then.", first=2), result("1", 2), mixed[-1]]  # fmt: skip
    c.render("a function, then python", swapped, [WEATHER], builtin_tools=["python"])
    c.render("python without a thought", [user("Run."), calls(("python", "1"))], builtin_tools=["python"])
    return c


def structured() -> Category:
    c = Category("structured", "an answer under a response format; no server writes the format into the prompt")
    number = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    nested = {"type": "object", "properties": {"p": {"type": "array", "items": {"type": "string"}}}, "required": ["p"]}
    for schema, reply in (
        (number, '{"n": 4}'),
        (number, '{"n":4}'),
        (nested, '{"p": ["a", "b"]}'),
        (nested, '{"p":[]}'),
    ):
        for strict in (True, False):
            form = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": strict}}
            asked = [user("Answer as JSON."), answer(reply, "JSON.")]
            c.render("a JSON schema", asked, response_format=form)
            c.render("a JSON schema beside instructions", [system("Be exact."), *asked], response_format=form)
    form = {"type": "json_schema", "json_schema": {"name": "reply", "description": "The reply.", "schema": number}}
    c.render("a schema with a description", [user("Count."), answer('{"n": 1}', "One.")], response_format=form)
    c.render("a schema beside a tool", [user("Count."), answer('{"n": 1}', "One.")], [WEATHER], response_format=form)
    c.render("a JSON object", [user("JSON."), answer('{"a": 1}', "Any.")], response_format={"type": "json_object"})
    c.render("plain text", [user("Hi."), answer("Hello.", "Hi.")], response_format={"type": "text"})
    loop = [*one_turn(1, 0, False, "all"), result("4 °C"), answer('{"n": 4}', "JSON.")]
    c.render("a schema in a tool loop", loop, [WEATHER], response_format=form)
    return c


def efforts() -> Category:
    c = Category("efforts", "the reasoning effort stands in the system message")
    q, t, a = "What is 2 * 3?", "Two times three.", "6"
    loop = [*one_turn(1, 0, True, "all")]
    for effort in ("low", "medium", "high"):
        c.render(f"{effort} effort", [user(q), answer(a, t)], effort=effort)
        c.render(f"{effort} effort without a thought", [user(q), answer(a)], effort=effort)
        c.render(f"{effort} effort with instructions", [system("Be brief."), user(q), answer(a, t)], effort=effort)
        c.render(f"{effort} effort with a tool", loop, [WEATHER], effort=effort)
        c.render(f"{effort} effort over two turns", [user(q), answer(a, t), user("And 3 + 3?"), answer("6", "Six.")],
                 effort=effort)  # fmt: skip
    return c


def developer_texts() -> Category:
    c = Category(
        "developer", "what a system or developer message says becomes the instructions of the developer message"
    )
    q, t, a = QUESTIONS[0]
    ask = [user(q), answer(a, t)]
    texts = {
        "one line": "Answer in one word.",
        "several lines": "Rules:\n1. Be brief.\n2. Be kind.",
        "a trailing newline": "Be brief.\n",
        "leading spaces": "  Be brief.",
        "Markdown headings": "# Role\n\nYou are a clerk.\n\n## Tone\n\nKind.",
        "a heading like one of Harmony's": "# Tools\n\nUse none.",
        "an identity": "You are Bob, a pirate.",
        "OpenAI's identity sentence": "You are ChatGPT, a large language model trained by OpenAI.",
        "a line like the effort": "Reasoning: high",
        "a JSON object": '{"tone": "kind"}',
        "code": "```python\nprint(1)\n```",
        "XML": "<rules><rule>Be brief.</rule></rules>",
        "not in ASCII": "Antworte höflich — 简短。",
        "a very long text": "Be brief. " * 200,
        "typographic quotes": "Say “yes” or ‘no’ …",
    }
    for what, text in texts.items():
        c.render(f"instructions: {what}", [system(text), *ask])
    for what in ("one line", "several lines", "Markdown headings", "not in ASCII", "a trailing newline"):
        c.render(f"a developer message: {what}", [developer(texts[what]), *ask])
    for what in ("one line", "Markdown headings", "a heading like one of Harmony's"):
        c.render(f"instructions beside a tool: {what}", [system(texts[what]), *ask], [WEATHER])
    c.render("no instructions before a tool", ask, [NOW])
    why = "a text that is already a rendered block; servers nest it, a reader of Harmony data takes the heading off"
    for text in ("# Instructions\n\nBe brief.", "# Instructions\n\n# Instructions\n\nBe brief."):
        c.render("instructions that begin with Harmony's heading", [system(text), *ask], status="arguable", why=why)
    return c


def late_system() -> Category:
    c = Category("late_system", "system and developer messages that are not the first message")
    (q1, t1, a1), (q2, t2, a2) = QUESTIONS[:2]
    first, second = [user(q1), answer(a1, t1)], [user(q2), answer(a2, t2)]
    for make, name in ((system, "system"), (developer, "developer")):
        c.render(f"a {name} message between turns", [*first, make("Now in French."), *second])
        c.render(f"a {name} message between turns, instructions at the start",
                 [system("Be brief."), *first, make("Now in French."), *second])  # fmt: skip
        c.render(f"a {name} message after the user's", [user(q1), make("In words."), answer("Four.", t1)])
        c.render(f"two {name} messages between turns", [*first, make("In French."), make("Be brief."), *second])
        loop = [*one_turn(1, 0, False, "all"), result("4 °C"), make("Be brief."), answer("Cold.", "Short.")]
        c.render(f"a {name} message in an open loop", loop, [WEATHER])
        c.render(f"a late {name} message with several lines", [*first, make("1. French.\n2. Kind.\n"), *second])
        c.render(f"a late {name} message without instructions before, with a tool", [*first, make("Hm."), *second],
                 [WEATHER])  # fmt: skip
        c.render(f"two leading {name} messages", [make("Be brief."), make("Be kind."), *first])
    c.render("a system and a developer message at the start", [system("Be brief."), developer("Be kind."), *first])
    c.render("a developer and a system message at the start", [developer("Be brief."), system("Be kind."), *first])
    return c
