"""The configuration: sections, recipe files and overrides, values, and combinations that are refused."""
