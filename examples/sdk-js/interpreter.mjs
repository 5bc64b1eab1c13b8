// The code interpreter: results, errors, tables, charts and contexts.
import assert from 'node:assert/strict'
import { Sandbox } from '@e2b/code-interpreter'

const sandbox = await Sandbox.create()
try {
  const first = await sandbox.runCode('print("hi"); x = 6; x * 7')
  assert.equal(first.text, '42')
  assert.deepEqual(first.logs.stdout, ['hi\n'])
  assert.equal((await sandbox.runCode('x')).text, '6', 'a context keeps its variables')

  const failed = await sandbox.runCode('1/0')
  assert.deepEqual([failed.error.name, failed.error.value], ['ZeroDivisionError', 'division by zero'])
  assert.match(failed.error.traceback, /ZeroDivisionError/)

  const table = await sandbox.runCode('import pandas as pd; pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})')
  assert.deepEqual(table.results[0].data, { a: [1, 2], b: ['x', 'y'] })
  assert.match(table.results[0].html, /<table/)

  // What models import as a matter of course is there.
  const usual = await sandbox.runCode('import bs4, openpyxl, scipy, seaborn, sklearn, sympy\nimport plotly.express as px\npx.bar(x=["a", "b"], y=[1, 2])')
  assert.equal(usual.error, undefined, JSON.stringify(usual.error))
  assert.match(usual.results.at(-1).html, /plotly/)

  const chart = async (code) => {
    const run = await sandbox.runCode(`import matplotlib.pyplot as plt\n${code}\nplt.show()`)
    assert.equal(run.error, undefined)
    assert.ok(run.results[0].png.length > 1000)
    return run.results[0].chart
  }
  const line = await chart('plt.plot([1, 2, 3], [4, 5, 6], label="l"); plt.title("T"); plt.xlabel("time (s)")')
  assert.deepEqual([line.type, line.title, line.x_label, line.x_unit, line.elements], ['line', 'T', 'time (s)', 's', [{ label: 'l', points: [[1, 4], [2, 5], [3, 6]] }]])
  const days = await chart('import datetime as d; plt.plot([d.date(2026, 1, 1), d.date(2026, 1, 2)], [1, 2])')
  assert.equal(days.x_scale, 'datetime')
  assert.deepEqual(days.elements[0].points, [['2026-01-01T00:00:00+00:00', 1], ['2026-01-02T00:00:00+00:00', 2]])
  assert.ok(days.x_ticks.every((tick) => !Number.isNaN(Date.parse(tick))))
  const names = await chart('plt.scatter(["a", "b"], [1, 2]); plt.yscale("log")')
  assert.deepEqual([names.x_scale, names.y_scale, names.elements[0].points], ['categorical', 'log', [['a', 1], ['b', 2]]])
  assert.deepEqual((await chart('plt.bar(["a", "b"], [1, 2])')).elements.map((e) => [e.label, e.value]), [['a', 1], ['b', 2]])
  assert.deepEqual((await chart('plt.scatter([1, 3], [2, 4])')).elements[0].points, [[1, 2], [3, 4]])
  assert.deepEqual((await chart('plt.pie([1, 3], labels=["a", "b"])')).elements.map((e) => [e.label, e.angle]), [['a', 90], ['b', 270]])
  const box = (await chart('plt.boxplot([[1, 2, 3, 4, 10]])')).elements[0]
  assert.deepEqual([box.min, box.median, box.max, box.outliers], [1, 3, 4, [10]])

  const context = await sandbox.createCodeContext({ cwd: '/tmp' })
  assert.equal((await sandbox.runCode('import os; os.getcwd()', { context })).text, '/tmp')
  assert.equal((await sandbox.listCodeContexts()).length, 3)
  await sandbox.restartCodeContext(context)
  assert.equal((await sandbox.runCode('os', { context })).error.name, 'NameError')
  await sandbox.removeCodeContext(context)
  assert.equal((await sandbox.listCodeContexts()).length, 2)

  assert.equal((await sandbox.runCode('import os; os.environ["FOO"]', { envs: { FOO: 'bar' } })).text, 'bar')
  assert.equal((await sandbox.runCode('"FOO" in os.environ')).text, 'False', 'these variables count for one execution')

  const seen = []
  await sandbox.runCode('import sys\nprint("a")\nprint("b", file=sys.stderr)', { onStdout: (o) => seen.push(['out', o.line]), onStderr: (o) => seen.push(['err', o.line]) })
  assert.deepEqual(seen.sort(), [['err', 'b\n'], ['out', 'a\n']])

  await assert.rejects(sandbox.runCode('import time; time.sleep(60)', { timeoutMs: 1000 }), { name: 'TimeoutError' })
  assert.equal((await sandbox.runCode('1 + 1')).text, '2', 'who leaves interrupts')
  await sandbox.runCode('import os; os._exit(1)')
  assert.equal((await sandbox.runCode('2 + 2')).text, '4', 'a kernel that died is replaced')
} finally {
  await sandbox.kill()
}
console.log('interpreter: ok')
