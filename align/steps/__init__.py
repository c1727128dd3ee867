"""The table of steps and what each one does with its inputs."""
