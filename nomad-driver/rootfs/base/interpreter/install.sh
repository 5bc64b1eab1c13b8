# Run on the finished root of the code interpreter, after customize.sh: $1 is the folder of this recipe's files, $2 the root.
set -eu
own=$1
root=$2
lib=/usr/lib/soulbox/code-interpreter-v1

mkdir -p "$root$lib" "$root/etc/soulbox/ports"
cp "$own"/*.py "$own"/*.js "$root$lib/"
chmod 0644 "$root$lib"/*

# The node runs this when the sandbox starts, and for the first connection to the port where it does not run.
cat >"$root/etc/soulbox/ports/49999" <<'PORT'
#!/bin/sh
exec /usr/bin/python3 /usr/lib/soulbox/code-interpreter-v1/main.py
PORT
chmod 0755 "$root/etc/soulbox/ports/49999"

# What Python makes of its sources: without their time, which is that of the build.
find "$root$lib" -name __pycache__ -prune -exec rm -rf {} +
chroot "$root" python3 -m compileall -q --invalidation-mode unchecked-hash "$lib"

# matplotlib's list of fonts, which takes it longer to make than a chart: in an order that does not depend on the folder's.
chroot "$root" su user -c 'cd && exec python3 -' <<'FONTS'
import glob, json, os
import matplotlib.font_manager
name, = glob.glob(os.path.join(matplotlib.get_cachedir(), "fontlist-*.json"))
with open(name) as f:
    fonts = json.load(f)
for kind in ("afmlist", "ttflist"):
    fonts[kind].sort(key=lambda font: (font["fname"], font["weight"], font["style"]))
with open(name, "w") as f:
    json.dump(fonts, f, indent=2)
FONTS
find "$root/home/user/.config" "$root/home/user/.cache" -name '*.lock' -exec rm -f {} +
