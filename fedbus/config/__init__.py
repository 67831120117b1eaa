"""Many YAML files to one checked set of options."""
