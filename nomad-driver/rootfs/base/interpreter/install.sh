# Run on the finished root of the code interpreter, after customize.sh: $1 is the folder of this recipe's files, $2 the root.
set -eu
own=$1
root=$2

mkdir -p "$root/usr/lib/soulbox/code-interpreter-v1" "$root/etc/soulbox/ports"
cp "$own"/*.py "$root/usr/lib/soulbox/code-interpreter-v1/"
chmod 0644 "$root"/usr/lib/soulbox/code-interpreter-v1/*.py

# The node runs this when the sandbox starts, and for the first connection to the port where it does not run.
cat >"$root/etc/soulbox/ports/49999" <<'PORT'
#!/bin/sh
export MPLCONFIGDIR="${MPLCONFIGDIR:-$HOME/.cache/matplotlib}"
exec /usr/bin/python3 /usr/lib/soulbox/code-interpreter-v1/server.py
PORT
chmod 0755 "$root/etc/soulbox/ports/49999"

# What Python made of its sources tells the time of the build.
find "$root/usr/lib/soulbox" -name __pycache__ -prune -exec rm -rf {} +
