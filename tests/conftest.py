from hypothesis import settings

# A busy machine must not fail a property.
settings.register_profile("counterpoint", deadline=None)
settings.load_profile("counterpoint")
