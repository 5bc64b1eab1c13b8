// Files: every format in which they are read and written, and what is known of them.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base')
const { files } = sandbox
try {
  const written = await files.write('a.txt', 'hello')
  assert.deepEqual([written.name, written.path, written.type], ['a.txt', '/home/user/a.txt', 'file'])
  assert.equal(await files.read('a.txt'), 'hello')
  assert.deepEqual([...(await files.read('a.txt', { format: 'bytes' }))], [...Buffer.from('hello')])
  assert.equal(await (await files.read('a.txt', { format: 'blob' })).text(), 'hello')
  let streamed = ''
  for await (const chunk of await files.read('a.txt', { format: 'stream' })) streamed += Buffer.from(chunk).toString()
  assert.equal(streamed, 'hello')

  const bytes = new Uint8Array(1 << 20).map((_, i) => i * 7)
  await files.write('deep/er/bytes', bytes.buffer)
  assert.deepEqual(Buffer.from(await files.read('deep/er/bytes', { format: 'bytes' })), Buffer.from(bytes))
  await files.write([{ path: 'x/1', data: '1' }, { path: '/tmp/2', data: '2' }])
  assert.equal(await files.read('/tmp/2'), '2')
  await files.write('multi.txt', 'as a form', { useOctetStream: false })
  assert.equal(await files.read('multi.txt'), 'as a form')
  await files.write('packed.txt', 'z'.repeat(100_000), { gzip: true })
  assert.equal((await files.read('packed.txt', { gzip: true })).length, 100_000)

  await assert.rejects(files.read('missing'), { name: 'FileNotFoundError', message: /path '\/home\/user\/missing' does not exist/ })
  await assert.rejects(files.read('/home'), { message: /path '\/home' is a directory/ })

  assert.deepEqual([await files.exists('a.txt'), await files.exists('missing')], [true, false])
  assert.deepEqual([await files.makeDir('new/dir'), await files.makeDir('new/dir')], [true, false])
  assert.deepEqual((await files.list('x')).map((e) => [e.name, e.type, e.path]), [['1', 'file', '/home/user/x/1']])
  assert.deepEqual((await files.list('.', { depth: 2 })).map((e) => e.path).filter((p) => p.includes('/deep')),
    ['/home/user/deep', '/home/user/deep/er'])
  const moved = await files.rename('a.txt', 'b.txt')
  assert.equal(moved.path, '/home/user/b.txt')
  await files.remove('new')
  assert.equal(await files.exists('new'), false)

  await sandbox.commands.run('chmod 750 b.txt && ln -s b.txt link && mkfifo pipe')
  const info = await files.getInfo('b.txt')
  assert.deepEqual([info.size, info.mode & 0o777, info.permissions, info.owner, info.group, info.type],
    [5, 0o750, '-rwxr-x---', 'user', 'user', 'file'])
  assert.equal((await files.getInfo('link')).symlinkTarget, '/home/user/b.txt')
  await assert.rejects(files.read('pipe'), { name: 'InvalidArgumentError' })

  await files.write('noted.txt', 'x', { metadata: { author: 'me' } })
  assert.deepEqual((await files.getInfo('noted.txt')).metadata, { author: 'me' })

  await sandbox.commands.run('setfattr -n user.e2b.author -v you noted.txt')
  assert.deepEqual((await files.getInfo('noted.txt')).metadata, { author: 'you' }, 'metadata is extended attributes')

  // Folders of one's own beside the home; what is root's stays root's.
  await files.write('/app/src/main.py', 'print(1)')
  assert.deepEqual([(await files.getInfo('/app')).owner, await files.read('/app/src/main.py')], ['user', 'print(1)'])
  await files.rename('/app', '/moved')
  await files.remove('/moved')
  assert.deepEqual([await files.exists('/app'), await files.exists('/moved')], [false, false])
  assert.equal(await files.makeDir('/workspace'), true)
  await assert.rejects(files.write('/etc/passwd', ''))

  await files.write('/root/secret', 'r', { user: 'root' })
  await assert.rejects(files.read('/root/secret'))
  assert.equal(await files.read('/root/secret', { user: 'root' }), 'r')
  await assert.rejects(files.read('x', { user: 'nobody-here' }), { name: 'AuthenticationError' })
} finally {
  await sandbox.kill()
}
console.log('files: ok')
