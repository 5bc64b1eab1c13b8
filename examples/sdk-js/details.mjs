// The small print: what comes back is what was sent, and each mistake is the error that the client has a class for.
import assert from 'node:assert/strict'
import {
  AuthenticationError, FileNotFoundError, InvalidArgumentError, NotFoundError, Sandbox, SandboxError, SandboxNotFoundError, Template, TimeoutError,
} from 'e2b'

const sandbox = await Sandbox.create('base', { envs: { SHARED: 'yes' }, timeoutMs: 300_000 })
const url = process.env.E2B_SANDBOX_URL
const at = (s, port, headers = {}) => fetch(url, { headers: { 'E2b-Sandbox-Id': s.sandboxId, 'E2b-Sandbox-Port': String(port), ...headers } })
const others = []
try {
  // A template's id is the same wherever it is told, and makes a sandbox like any of its names.
  const info = await sandbox.getInfo()
  assert.equal(info.name, 'base')
  const again = await Sandbox.create(info.templateId)
  others.push(again)
  assert.equal((await again.getInfo()).templateId, info.templateId)
  const env = (await sandbox.commands.run('env')).stdout.split('\n')
  for (const v of ['E2B_SANDBOX=true', `E2B_SANDBOX_ID=${sandbox.sandboxId}`, `E2B_TEMPLATE_ID=${info.templateId}`, 'SHARED=yes']) assert.ok(env.includes(v), v)
  assert.ok(env.some((v) => v.startsWith('E2B_EVENTS_ADDRESS=http://')))
  assert.ok((await Sandbox.list({ query: { template: info.templateId } }).nextItems()).length >= 2)
  assert.deepEqual(await Sandbox.list({ query: { template: 'no-such-template' } }).nextItems(), [])

  // A command is listed as it was asked for.
  const sleeper = await sandbox.commands.run('sleep 60', { background: true, cwd: '/tmp', envs: { A: 'b' } })
  const [listed] = (await sandbox.commands.list()).filter((p) => p.pid === sleeper.pid)
  assert.deepEqual(listed, { pid: sleeper.pid, cmd: '/bin/bash', args: ['-l', '-c', 'sleep 60'], envs: { A: 'b' }, cwd: '/tmp' })
  await assert.rejects(sandbox.pty.resize(sleeper.pid, { cols: 80, rows: 24 }), /tty not assigned/)
  await assert.rejects(sleeper.sendStdin('x'), SandboxError)
  assert.equal(await sleeper.kill(), true)
  await assert.rejects(sleeper.wait(), { exitCode: -1, error: 'signal: killed' })
  assert.equal(await sandbox.commands.kill(sleeper.pid), false)
  const brief = await sandbox.commands.run('exit 3', { background: true })
  await assert.rejects(brief.wait(), { exitCode: 3, error: 'exit status 3' })
  await assert.rejects((await sandbox.commands.connect(brief.pid)).wait(), { exitCode: 3 }) // its end is told for a while

  const refused = [
    [AuthenticationError, sandbox.commands.run('true', { user: 'nobody-here' }), /invalid username: 'nobody-here'/],
    [AuthenticationError, sandbox.files.read('/a', { user: 'nobody-here' }), /invalid username/],
    [AuthenticationError, Sandbox.create('base', { apiKey: `e2b_${'0'.repeat(80)}` })],
    [InvalidArgumentError, sandbox.commands.run('true', { cwd: '/no/such' }), /cwd '\/no\/such' does not exist/],
    [InvalidArgumentError, sandbox.files.read('/tmp'), /path '\/tmp' is a directory/],
    [InvalidArgumentError, sandbox.files.list('/etc/passwd')],
    [InvalidArgumentError, sandbox.files.watchDir('/etc/passwd', () => {})],
    [InvalidArgumentError, sandbox.files.writeFiles([{ path: 'twice', data: '1' }, { path: 'twice', data: '2' }])],
    [FileNotFoundError, sandbox.files.read('/no/such'), /path '\/no\/such' does not exist/],
    [FileNotFoundError, sandbox.files.list('/no/such')],
    [FileNotFoundError, sandbox.files.rename('/no/such', '/tmp/x')],
    [FileNotFoundError, sandbox.files.watchDir('/no/such', () => {})],
    [NotFoundError, sandbox.commands.connect(999_999), /process with pid 999999 not found/],
    [NotFoundError, sandbox.commands.sendStdin(999_999, 'x')],
    [TimeoutError, sandbox.commands.run('sleep 60', { timeoutMs: 300 })],
    [SandboxNotFoundError, Sandbox.connect('iaaaaaaaaaaaaaaaaaaaa')],
    [SandboxNotFoundError, Sandbox.getInfo('iaaaaaaaaaaaaaaaaaaaa')],
    [SandboxError, Sandbox.create('no-such-template'), /404/],
    [SandboxError, Sandbox.create('base', { timeoutMs: 0 }), /400/],
    [SandboxError, Sandbox.create('base', { timeoutMs: 1e11 }), /Timeout cannot be greater than/],
    [SandboxError, Sandbox.create('base', { network: { allowOut: ['example.com'] } }), /400/],
    [SandboxError, Sandbox.list({ limit: 101 }).nextItems(), /400/],
    [SandboxError, Sandbox.list({ nextToken: 'none' }).nextItems(), /400/],
  ]
  const outcomes = await Promise.allSettled(refused.map(([, call]) => call))
  for (const [i, [kind, , text]] of refused.entries()) {
    const { reason: e, value } = outcomes[i]
    assert.ok(e, `${kind.name} expected, and not ${JSON.stringify(value)}`)
    assert.ok(e instanceof kind, `${kind.name} expected: ${e.stack}`)
    if (text) assert.match(e.message, text)
  }
  assert.equal(await Sandbox.kill('iaaaaaaaaaaaaaaaaaaaa'), false)
  assert.equal(await Template.exists('no-such-template'), false)

  // What is set at a create is told again.
  for (const [onTimeout, autoResume] of [['kill', false], ['pause', false], ['pause', true]]) {
    const s = await Sandbox.create('base', { lifecycle: { onTimeout, autoResume }, allowInternetAccess: false })
    others.push(s)
    const { lifecycle, allowInternetAccess } = await s.getInfo()
    assert.deepEqual({ lifecycle, allowInternetAccess }, { lifecycle: { onTimeout, autoResume }, allowInternetAccess: false })
  }

  // The token of one sandbox's private ports opens no other's.
  const [mine, theirs] = await Promise.all([0, 1].map(() => Sandbox.create('base', { network: { allowPublicTraffic: false } })))
  others.push(mine, theirs)
  for (const s of [mine, theirs]) await s.commands.run('python3 -m http.server 3000', { background: true })
  const opened = async (s, token) => {
    for (;;) {
      const { status } = await at(s, 3000, token ? { 'e2b-traffic-access-token': token } : {})
      if (status !== 502) return status
      await new Promise((r) => setTimeout(r, 50)) // the server does not listen yet
    }
  }
  assert.equal(await opened(mine, mine.trafficAccessToken), 200)
  assert.equal(await opened(mine, theirs.trafficAccessToken), 403)
  assert.equal(await opened(mine), 403)
  assert.equal(await opened(mine, theirs.envdAccessToken), 403)
} finally {
  await Promise.all([sandbox, ...others].map((s) => s.kill()))
}
console.log('details: ok')
