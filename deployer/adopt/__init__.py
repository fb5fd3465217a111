"""Takes over what serves already: an archive, a config.properties, an InferenceService.

Each module reads one of them into keys of `kdeploy.toml`, and says what became of every field.
"""
