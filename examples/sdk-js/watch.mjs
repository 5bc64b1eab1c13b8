// What happens in a folder, and below it, as it happens.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base')
try {
  await sandbox.files.makeDir('watched/sub')
  const events = []
  const handle = await sandbox.files.watchDir('watched', (e) => events.push(e), { recursive: true, includeEntry: true })
  await sandbox.files.write('watched/sub/a', '1')
  await sandbox.files.rename('watched/sub/a', 'watched/b')
  await sandbox.commands.run('chmod 600 watched/b && rm watched/b && mkdir watched/new && touch watched/new/c')
  const has = (type, name) => events.some((e) => e.type === type && e.name === name)
  const wanted = [['create', 'sub/a'], ['rename', 'sub/a'], ['chmod', 'b'], ['remove', 'b'], ['create', 'new'], ['create', 'new/c']]
  const until = Date.now() + 10_000
  while (!wanted.every(([t, n]) => has(t, n)) && Date.now() < until) await new Promise((r) => setTimeout(r, 20))
  for (const [type, name] of wanted) assert.ok(has(type, name), `${type} ${name} in ${JSON.stringify(events.map((e) => [e.type, e.name]))}`)
  await handle.stop()
  await assert.rejects(sandbox.files.watchDir('missing', () => {}), { name: 'FileNotFoundError' })
} finally {
  await sandbox.kill()
}
console.log('watch: ok')
