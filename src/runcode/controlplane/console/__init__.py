"""The console's looks: templates, wording and static files. Pure; who may see what is decided in `services`."""
