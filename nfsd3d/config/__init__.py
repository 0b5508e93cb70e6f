"""Configuration: YAML files and overrides become one validated `Config`, without importing torch."""
