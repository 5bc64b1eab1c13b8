// The code interpreter in other languages, and at its edges: order, big output, unicode, the end of a kernel.
import assert from 'node:assert/strict'
import { Sandbox } from '@e2b/code-interpreter'

const sandbox = await Sandbox.create({ envs: { FROM_CREATE: 'yes' } })
const run = (code, options) => sandbox.runCode(code, options)
try {
  // JavaScript: declarations stay and may be repeated, imports, await.
  const js = { language: 'js' }
  assert.equal((await run('const { a, ...rest } = { a: 1, b: 2 }; let n = a; rest', js)).text, '{ b: 2 }')
  assert.equal((await run('const a = 5; function twice(x) { return x * 2 }\ntwice(a)', js)).text, '10')
  assert.equal((await run('import path, { join } from "node:path"\nawait null; join("x", path.sep)', js)).text, 'x/')
  assert.deepEqual((await run('console.log("Hello")', js)).logs.stdout, ['Hello\n'])
  const failed = (await run('null.x', js)).error
  assert.equal(failed.name, 'TypeError')
  assert.match(failed.traceback, /cell-5\.js/)
  assert.equal((await run('process.env.FROM_CREATE + process.env.ONCE', { ...js, envs: { ONCE: '1' } })).text, 'yes1')
  assert.equal((await run('process.env.ONCE', js)).text, undefined)

  // TypeScript, in a context of its own.
  assert.equal((await run('interface P { x: number }\nconst p: P = { x: 3 }\np.x as number', { language: 'ts' })).text, '3')

  // bash: one shell.
  const bash = { language: 'bash' }
  assert.deepEqual((await run('cd /tmp; declare -A m=([k]=v); echo $FROM_CREATE', bash)).logs.stdout, ['yes\n'])
  assert.equal((await run('echo "$PWD ${m[k]} $X"', { ...bash, envs: { X: "it's" } })).logs.stdout.join(''), "/tmp v it's\n")
  assert.equal((await run('echo "[$X]"; (exit 3)', bash)).error.value, '3')

  // What is not there says so.
  for (const language of ['r', 'java', 'nosuch']) await assert.rejects(run('1', { language }), /400/)
  await assert.rejects(sandbox.createCodeContext({ cwd: '/nosuch' }), /400/)
  await assert.rejects(run('1', { context: { id: 'nosuch' } }), { name: 'NotFoundError' })
  await assert.rejects(sandbox.removeCodeContext('nosuch'), { name: 'NotFoundError' })

  // Python: everything in its order, whoever prints it.
  const order = []
  const note = (kind) => (o) => order.push(kind + (o.line ?? o.text).trim())
  await run('import sys\nprint("a"); print("b", file=sys.stderr); print("c"); display("d"); print("e")', {
    onStdout: note('out '), onStderr: note('err '), onResult: note('result '),
  })
  assert.deepEqual(order, ['out a', 'err b', 'out c', 'result d', 'out e'])
  assert.equal((await run('!echo from a shell')).logs.stdout.join('').trim(), 'from a shell')
  assert.equal((await run('import os; os.system("echo child")')).logs.stdout.join(''), 'child\n')
  assert.equal((await run('import asyncio\nawait asyncio.sleep(0.01)\n"done"')).text, 'done')
  assert.equal((await run('"héé 漢字 🎉"')).text, 'héé 漢字 🎉')
  assert.equal((await run('print("x" * 5_000_000)')).logs.stdout.join('').length, 5_000_001)
  assert.equal((await run('input()')).error.name, 'StdinNotImplementedError')
  assert.equal((await run('def f(:')).error.name, 'SyntaxError')
  const shown = await run('from IPython.display import *\ndisplay(HTML("<b>"), Markdown("*m*"), Latex("$x$"), JSON({"a": 1}), Javascript("1"), SVG("<svg/>"))')
  assert.deepEqual(shown.results.map((r) => r.formats().join()), ['html', 'markdown', 'latex', 'json', 'javascript', 'svg'])
  const count = (await run('1')).executionCount
  assert.equal((await run('2')).executionCount, count + 1)

  const died = await run('import os; print("bye"); os._exit(1)')
  assert.equal(died.error.name, 'UnexpectedEndOfExecution')
  assert.deepEqual(died.logs.stdout, ['bye\n'], 'what it said last is not lost')
  assert.equal((await run('2 + 2')).text, '4')
  await run('exit()')
  assert.equal((await run('3 + 3')).text, '6')

  // Contexts run beside each other.
  const [one, two] = await Promise.all([sandbox.createCodeContext(), sandbox.createCodeContext()])
  const both = await Promise.all([one, two].map((context, i) => run(`x = ${i}\nimport time; time.sleep(0.5)\nx`, { context })))
  assert.deepEqual(both.map((e) => e.text), ['0', '1'])
  const languages = (await sandbox.listCodeContexts()).map((c) => c.language)
  for (const l of ['python', 'javascript', 'typescript', 'bash']) assert.ok(languages.includes(l), l)
} finally {
  await sandbox.kill()
}
console.log('languages: ok')
