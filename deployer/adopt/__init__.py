"""Takes over a model that TorchServe serves: its archive, its config.properties, its InferenceService.

Each module reads one of them into keys of `kdeploy.toml`, and says what became of every field.
"""
