// A terminal.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base')
try {
  let screen = ''
  const decoder = new TextDecoder()
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, envs: { WHO: 'me' }, onData: (d) => (screen += decoder.decode(d, { stream: true })) })
  const see = async (want) => {
    const until = Date.now() + 10_000
    while (!want.test(screen) && Date.now() < until) await new Promise((r) => setTimeout(r, 10))
    assert.match(screen, want)
  }
  const type = (text) => sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(text))
  await type('echo $WHO-$TERM; stty size\n')
  await see(/me-xterm-256color\r\n24 80/)
  await sandbox.pty.resize(terminal.pid, { cols: 120, rows: 40 })
  await type('stty size\n')
  await see(/40 120/)
  await type('exit 4\n')
  await assert.rejects(terminal.wait(), (e) => e.exitCode === 4)

  const other = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })
  assert.equal(await sandbox.pty.kill(other.pid), true)
  await assert.rejects(other.wait())
} finally {
  await sandbox.kill()
}
console.log('pty: ok')
