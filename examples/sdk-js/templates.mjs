// Templates: built from instructions, tagged, used and removed.
import assert from 'node:assert/strict'
import fs from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { Sandbox, Template, waitForURL } from 'e2b'

const context = await fs.mkdtemp(path.join(os.tmpdir(), 'template-'))
await fs.mkdir(path.join(context, 'app'))
await fs.writeFile(path.join(context, 'app', 'index.html'), 'hello from a template')
await fs.writeFile(path.join(context, 'run.sh'), '#!/bin/sh\necho ran\n')

const lines = []
const template = Template({ fileContextPath: context })
  .fromTemplate('base')
  .setEnvs({ GREETING: 'hi' })
  .setWorkdir('/home/user/app')
  .copy('app', '.')
  .copy('run.sh', '/usr/local/bin/run', { mode: 0o755, user: 'root' })
  .runCmd('echo "$GREETING from $(pwd) as $(id -un)" | tee built.txt')
  .runCmd('echo root > /etc/by-root', { user: 'root' })
  .setStartCmd('python3 -m http.server 8000', waitForURL('http://localhost:8000/index.html'))
const name = 'sdk-example'
const built = await Template.build(template, name, { cpuCount: 1, memoryMB: 256, onBuildLogs: (l) => lines.push(l.message) })
assert.equal(built.name, name)
assert.ok(lines.includes('hi from /home/user/app as user'), lines.join('\n'))

const sandbox = await Sandbox.create(name)
try {
  const { stdout } = await sandbox.commands.run('pwd; cat built.txt; run; cat /etc/by-root; echo $GREETING; curl -s localhost:8000/index.html')
  assert.equal(stdout, '/home/user/app\nhi from /home/user/app as user\nran\nroot\nhi\nhello from a template')
  const info = await sandbox.getInfo()
  assert.equal(info.memoryMB, 256)
} finally {
  await sandbox.kill()
}

// Variables stand in values, folders and destinations, as in a Dockerfile; and a PATH is every command's.
const varied = 'sdk-variables'
await Template.build(
  Template({ fileContextPath: context })
    .fromTemplate('base')
    .setEnvs({ ROOT: '/opt/varied', PRICE: '5\\$', DEEP: '${UNSET:-${HOME}/deep}' })
    .setEnvs({ PATH: '$ROOT/bin:$PATH' })
    .setWorkdir('$ROOT')
    .copy('run.sh', '$ROOT/bin/varied', { mode: 0o755 })
    .runCmd('varied > ran.txt'),
  varied,
)
const various = await Sandbox.create(varied)
try {
  const { stdout } = await various.commands.run('pwd; cat ran.txt; echo "$PRICE $DEEP"; varied; stat -c %U:%G . bin/varied')
  assert.equal(stdout, '/opt/varied\nran\n5$ /home/user/deep\nran\nuser:user\nuser:user\n')
} finally {
  await various.kill()
}

assert.ok(await Template.exists(name))
await Template.assignTags(name, ['v1', 'stable'])
assert.deepEqual((await Template.getTags(name)).map((t) => t.tag).sort(), ['default', 'stable', 'v1'])
const tagged = await Sandbox.create(`${name}:v1`)
await tagged.kill()
await Template.removeTags(name, ['stable'])

// A step that fails says so, and nothing is made.
await assert.rejects(Template.build(Template().fromTemplate('base').runCmd('echo oops >&2; exit 3'), 'sdk-broken'), /exit code 3/)
assert.ok(!(await Template.exists('sdk-broken')))

await fs.rm(context, { recursive: true })
console.log('templates: ok')
