// Snapshots and forks: running copies of a sandbox, with its processes and files.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base', { timeoutMs: 120_000 })
const made = [sandbox]
const name = `example-${Date.now()}`
try {
  await sandbox.files.write('/home/user/note', 'first')
  await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })

  // Each copy starts or fails for itself: what failed is an Error in its place.
  const copies = await sandbox.fork({ count: 3, timeoutMs: 60_000 })
  const forks = copies.filter((c) => c instanceof Sandbox)
  made.push(...forks)
  for (const failed of copies.filter((c) => c instanceof Error)) throw failed
  assert.equal(forks.length, 3)
  const machines = new Set()
  for (const fork of forks) {
    assert.equal(await fork.files.read('/home/user/note'), 'first')
    assert.ok((await fork.commands.list()).some((p) => p.args.join(' ').includes('sleep 1000')), 'its process goes on')
    machines.add((await fork.commands.run('cat /etc/machine-id')).stdout)
  }
  assert.equal(machines.size, 3, 'each copy is a machine of its own')
  assert.equal(await sandbox.isRunning(), true)

  const snapshot = await sandbox.createSnapshot({ name })
  assert.deepEqual(snapshot.names, [snapshot.snapshotId])
  assert.ok(snapshot.snapshotId.endsWith(`/${name}:default`), snapshot.snapshotId)
  await sandbox.files.write('/home/user/note', 'second')
  const restored = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
  made.push(restored)
  assert.equal(await restored.files.read('/home/user/note'), 'first')
  assert.equal(await sandbox.files.read('/home/user/note'), 'second')
  for (const said of [name, `${name}:default`, snapshot.snapshotId]) {
    const listed = await Sandbox.listSnapshots({ name: said }).nextItems()
    assert.deepEqual(listed.map((s) => s.snapshotId), [snapshot.snapshotId])
    const found = await Sandbox.create(said, { timeoutMs: 60_000 })
    made.push(found)
    assert.equal(await found.files.read('/home/user/note'), 'first')
  }
  const nameless = await sandbox.createSnapshot()
  assert.match(nameless.snapshotId, /^s[a-z0-9]{20}:default$/)
  assert.deepEqual(nameless.names, [])
  const second = await Sandbox.create(nameless.snapshotId, { timeoutMs: 60_000 })
  made.push(second)
  assert.equal(await second.files.read('/home/user/note'), 'second')
  assert.equal(await Sandbox.deleteSnapshot(nameless.snapshotId), true)
  await restored.kill()
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
} finally {
  for (const s of made) await s.kill()
}
console.log('snapshots: ok')
