// Commands: what they print, how they end, what they are told.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base', { envs: { GREETING: 'hello' } })
try {
  const seen = []
  const done = await sandbox.commands.run('echo "$GREETING $NAME"; echo oops >&2; id -un; pwd', {
    envs: { NAME: 'world' }, onStdout: (s) => seen.push(s),
  })
  assert.equal(done.exitCode, 0)
  assert.equal(done.stdout, 'hello world\nuser\n/home/user\n')
  assert.equal(done.stderr, 'oops\n')
  assert.equal(seen.join(''), done.stdout)

  await assert.rejects(sandbox.commands.run('exit 3'), (e) => e.name === 'CommandExitError' && e.exitCode === 3 && e.error === 'exit status 3')
  await assert.rejects(sandbox.commands.run('true', { cwd: '/nowhere' }), { name: 'InvalidArgumentError', message: /cwd '\/nowhere' does not exist/ })
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-here' }), { name: 'AuthenticationError', message: /invalid username: 'nobody-here'/ })
  assert.equal((await sandbox.commands.run('id -u', { user: 'root' })).stdout, '0\n')

  assert.equal((await sandbox.commands.run('cat /run/e2b/.E2B_SANDBOX_ID; echo " $E2B_SANDBOX_ID"')).stdout, `${sandbox.sandboxId} ${sandbox.sandboxId}\n`)

  assert.match((await sandbox.commands.run('python --version')).stdout, /^Python 3/)

  // Input, and an end of it.
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(cat.pid, 'a line\n')
  assert.ok((await sandbox.commands.list()).some((p) => p.pid === cat.pid && p.args.includes('cat')))
  await sandbox.commands.closeStdin(cat.pid)
  assert.equal((await cat.wait()).stdout, 'a line\n')

  // A command outlives its client; another one joins it.
  const slow = await sandbox.commands.run('for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done', { background: true })
  await slow.disconnect()
  const joined = await sandbox.commands.connect(slow.pid)
  const rest = await joined.wait()
  assert.equal(rest.exitCode, 0)
  assert.match(rest.stdout, /6\n$/)
  assert.equal((await (await sandbox.commands.connect(slow.pid)).wait()).exitCode, 0, 'the end is told for a while')

  // Deadlines and kills.
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 500 }), { name: 'TimeoutError' })
  const endless = await sandbox.commands.run('sleep 1000 & sleep 1000', { background: true, timeoutMs: 0 })
  assert.equal(await endless.kill(), true)
  await assert.rejects(endless.wait(), (e) => e.exitCode === -1 && e.error === 'signal: killed')
  assert.equal(await sandbox.commands.kill(endless.pid), false)
  assert.equal((await sandbox.commands.run('pgrep -c sleep || true')).stdout, '0\n', 'what a shell started ends with it')

  // Much output, whole.
  const much = await sandbox.commands.run('head -c 3000000 /dev/zero | tr "\\0" x')
  assert.equal(much.stdout.length, 3_000_000)
} finally {
  await sandbox.kill()
}
console.log('commands: ok')
