import sys
settings = {}
for line in sys.stdin:
    if line.strip() and not line.startswith("#"):
        name, value = line.split("=")
        settings[name.strip()] = value.strip()
for name in sorted(settings):
    print(f"{name}={settings[name]}")
