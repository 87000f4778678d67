import sys
settings = {}
for line in sys.stdin:
    if "=" in line:
        name, value = line.split("=")
        settings.setdefault(name.strip(), value.strip())
for name in sorted(settings):
    print(f"{name}={settings[name]}")
