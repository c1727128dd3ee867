"""The typed recipe: one strict YAML file describes a whole run."""
