// Secrets: named values that nobody reads back, and that the node puts into requests of sandboxes which name them.
import assert from 'node:assert/strict'
import { Sandbox, Secret, SecretError, SecretNotFoundError } from 'e2b'

const name = `example-${Date.now()}`
const made = await Secret.create(name, 'hunter2', { metadata: { team: 'a' } })
const others = []
let sandbox
try {
  assert.match(made.secretId, /^sec_/)
  assert.deepEqual([made.name, made.version, made.metadata], [name, 1, { team: 'a' }])
  assert.ok(made.createdAt instanceof Date && Math.abs(made.createdAt - Date.now()) < 60_000)
  assert.ok(!JSON.stringify(made).includes('hunter2'))
  await assert.rejects(Secret.create(name, 'x'), (e) => e instanceof SecretError && /409/.test(e.message))
  for (const ref of [name, made.secretId]) assert.deepEqual(await Secret.getInfo(ref), made)
  assert.deepEqual([await Secret.exists(name), await Secret.exists('no-such-secret')], [true, false])
  await assert.rejects(Secret.getInfo('no-such-secret'), SecretNotFoundError)
  await assert.rejects(Secret.update('no-such-secret', 'x'), SecretNotFoundError)
  assert.equal(await Secret.destroy('no-such-secret'), false)

  for (const n of [1, 2]) others.push((await Secret.create(`${name}-${n}`, 'x')).name)
  const listed = []
  const pages = Secret.list({ limit: 2 })
  while (pages.hasNext) listed.push(...(await pages.nextItems()).map((s) => s.name))
  assert.deepEqual(listed.filter((n) => n.startsWith(name)), [...others].reverse().concat(name))

  // A rule names it; the sandbox and its description never have the value, and the node says what a rule still waits for.
  const headers = { Authorization: `Bearer ${Secret.fill(name)}` }
  sandbox = await Sandbox.create('base', { network: { rules: { 'api.example.com': [{ transform: { headers } }] } } })
  const info = await sandbox.getInfo()
  assert.deepEqual(info.network.rules, { 'api.example.com': [{ transform: { headers } }] })
  assert.ok(!(await sandbox.commands.run('env')).stdout.includes('hunter2'))
  const status = async () => (await fetch(`${process.env.E2B_API_URL}/v1/sandboxes/${sandbox.sandboxId}/network`, { headers: { 'X-API-Key': process.env.E2B_API_KEY } })).json()
  const { enabled, rules } = await status()
  if (enabled) { // the machine can give sandboxes networks
    assert.deepEqual(rules, [{ domain: 'api.example.com', headers: { authorization: '' } }])
  }
  const again = await Secret.update(name, 'hunter3', { metadata: { team: 'b' } })
  assert.deepEqual([again.secretId, again.version, again.metadata], [made.secretId, 2, { team: 'b' }])
  assert.equal(await Secret.destroy(made.secretId), true)
  assert.equal(await Secret.destroy(name), false)
  if (enabled) assert.deepEqual((await status()).rules[0].lacks, [`secrets.${name}`])
} finally {
  await Promise.all([...others, name].map((n) => Secret.destroy(n)))
  await sandbox?.kill()
}
console.log('secrets: ok')
