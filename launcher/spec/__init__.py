"""What the user asks for: YAML with places, overrides, environment, and every problem at once.

Importing this room loads neither pydantic nor ruamel; the first spec that is loaded does.
"""

from .load import LoadedSpec, json_schema, load_spec, load_stages

__all__ = ["LoadedSpec", "json_schema", "load_spec", "load_stages"]
