// Pauses, copies and snapshots: what a sandbox was doing goes on.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base', { metadata: { example: 'pause' }, timeoutMs: 120_000 })
const made = [sandbox]
try {
  await sandbox.files.write('/home/user/note', 'kept')
  await sandbox.commands.run('n=0; while :; do n=$((n+1)); echo $n > /home/user/n; sleep 0.05; done', { background: true, timeoutMs: 0 })
  while (!(await sandbox.files.exists('/home/user/n'))) await new Promise((r) => setTimeout(r, 20))

  // A paused sandbox keeps its id; it answers nothing until somebody connects to it.
  assert.equal(await sandbox.pause(), true)
  assert.equal(await sandbox.pause(), false)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(sandbox.setTimeout(60_000), { name: 'SandboxNotFoundError' })
  const pages = Sandbox.list({ query: { metadata: { example: 'pause' }, state: ['paused'] } })
  assert.deepEqual((await pages.nextItems()).map((s) => s.sandboxId), [sandbox.sandboxId])
  const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 120_000 })
  assert.equal((await again.getInfo()).state, 'running')
  assert.equal(await again.files.read('/home/user/note'), 'kept')
  const count = async (s) => Number(await s.files.read('/home/user/n'))
  const grows = async (s) => {
    const before = await count(s)
    const until = Date.now() + 15_000
    while ((await count(s)) <= before && Date.now() < until) await new Promise((r) => setTimeout(r, 20))
    return (await count(s)) > before
  }
  assert.ok(await grows(again), 'its process goes on')

  // A pause can keep the files alone: the sandbox is booted anew then.
  assert.equal(await again.pause({ keepMemory: false }), true)
  const booted = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 120_000 })
  assert.equal(await booted.files.read('/home/user/note'), 'kept')
  assert.ok(!(await booted.commands.list()).some((p) => p.args.join(' ').includes('while')), 'its processes have ended')

  // At its timeout a sandbox is paused where it was made so, and traffic wakes it.
  const dozing = await Sandbox.create('base', { timeoutMs: 2_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
  made.push(dozing)
  const until = Date.now() + 20_000
  while ((await dozing.getInfo()).state !== 'paused' && Date.now() < until) await new Promise((r) => setTimeout(r, 100))
  assert.equal((await dozing.getInfo()).state, 'paused')
  assert.equal((await dozing.commands.run('echo awake')).stdout, 'awake\n')
} finally {
  for (const s of made) await s.kill()
}
assert.equal(await sandbox.kill(), false)
console.log('pause: ok')
