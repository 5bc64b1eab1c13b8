#!/bin/sh
# The command line of E2B.
set -eu
e2b="node_modules/.bin/e2b"

id=$(node -e 'import("e2b").then(async ({Sandbox}) => console.log((await Sandbox.create("base", {metadata: {by: "cli"}})).sandboxId))')
$e2b sandbox list | grep -q "$id"
test "$($e2b sandbox exec "$id" echo from-inside | tail -n 1)" = from-inside
$e2b sandbox logs "$id" | grep -q from-inside
$e2b sandbox metrics "$id" --format json >/dev/null
$e2b template list | grep -q base
dir=$(mktemp -d)
printf 'FROM e2bdev/base\nCOPY hello.txt /home/user/\nRUN cat /home/user/hello.txt\n' >"$dir/e2b.Dockerfile"
echo hello >"$dir/hello.txt"
$e2b template create cli-example --path "$dir" --dockerfile e2b.Dockerfile >/dev/null
$e2b template list --format json | grep -q '"cli-example"'
$e2b template delete cli-example --yes >/dev/null
if $e2b template list | grep -q cli-example; then
	echo "the template is still there" >&2
	exit 1
fi
rm -r "$dir"
$e2b sandbox kill "$id" >/dev/null
if $e2b sandbox list | grep -q "$id"; then
	echo "the sandbox is still there" >&2
	exit 1
fi
echo "cli: ok"
