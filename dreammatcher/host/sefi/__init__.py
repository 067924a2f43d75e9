"""SeFi-IDE on the host: training, prompts, application, files."""
