// Sandboxes: what is known of them, how they are found, how long they live.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const mark = `run-${Date.now()}-${Math.random()}`
const sandbox = await Sandbox.create('base', { metadata: { mark, 'odd key': 'a&b=c' }, timeoutMs: 60_000 })
const other = await Sandbox.create('base', { metadata: { mark } })
try {
  const info = await sandbox.getInfo()
  assert.deepEqual(info.metadata, { mark, 'odd key': 'a&b=c' })
  assert.equal(info.state, 'running')
  assert.ok(info.endAt - info.startedAt <= 61_000)

  const all = async (query, limit) => {
    const out = []
    const pages = Sandbox.list({ query, limit })
    while (pages.hasNext) out.push(...(await pages.nextItems()))
    return out.map((s) => s.sandboxId)
  }
  assert.deepEqual((await all({ metadata: { mark } }, 1)).sort(), [sandbox.sandboxId, other.sandboxId].sort())
  assert.deepEqual(await all({ metadata: { mark, 'odd key': 'a&b=c' } }), [sandbox.sandboxId])
  assert.deepEqual(await all({ metadata: { mark: 'none' } }), [])

  await sandbox.setTimeout(120_000)
  assert.ok((await sandbox.getInfo()).endAt - Date.now() > 100_000)
  const again = await Sandbox.connect(sandbox.sandboxId)
  assert.equal((await again.commands.run('echo same')).stdout, 'same\n')
  assert.equal(await sandbox.isRunning(), true)
  await sandbox.updateNetwork({ denyOut: ['0.0.0.0/0'] })

  // The end of a sandbox is the end of what goes on in it.
  const cut = assert.rejects(other.commands.run('sleep 100', { timeoutMs: 0 }), { name: 'TimeoutError' })
  while ((await other.commands.list()).length === 0) await new Promise((r) => setTimeout(r, 20))
  assert.equal(await other.kill(), true)
  await cut
  assert.equal(await other.isRunning(), false)
  assert.equal(await other.kill(), false)
  await assert.rejects(Sandbox.connect(other.sandboxId), { name: /NotFoundError/ })
  await assert.rejects(Sandbox.create('no-such-template'))

  const brief = await Sandbox.create('base', { timeoutMs: 1000 })
  const until = Date.now() + 15_000
  while ((await brief.isRunning()) && Date.now() < until) await new Promise((r) => setTimeout(r, 100))
  assert.equal(await brief.isRunning(), false, 'a sandbox ends at its timeout')
} finally {
  await sandbox.kill()
  await other.kill()
}
console.log('sandboxes: ok')
