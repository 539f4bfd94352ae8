"""The models somebody works on: projects, their structure, the hub."""
