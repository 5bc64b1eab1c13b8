// Signed links: files without a key. Here they carry no sandbox id: the signature says it.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base')
try {
  await sandbox.files.write('a.txt', 'for whoever has the link')
  const link = await sandbox.downloadUrl('a.txt', { useSignatureExpiration: 60 })
  const got = await fetch(link)
  assert.deepEqual([got.status, await got.text()], [200, 'for whoever has the link'])
  const part = await fetch(link, { headers: { Range: 'bytes=0-2' } })
  assert.deepEqual([part.status, await part.text()], [206, 'for'])

  const doctored = await fetch(link.replace('a.txt', 'b.txt'))
  assert.deepEqual([doctored.status, (await doctored.json()).message], [401, 'invalid signature'])
  const late = await fetch(link.replace(/signature_expiration=\d+/, 'signature_expiration=1'))
  assert.deepEqual([late.status, (await late.json()).message], [401, 'signature is already expired'])
  const wrong = await fetch(link, { method: 'POST', body: 'x', headers: { 'Content-Type': 'application/octet-stream' } })
  assert.equal(wrong.status, 401, 'a link to read is none to write')

  const form = new FormData()
  form.append('file', new Blob(['sent']), 'up.txt')
  const put = await fetch(await sandbox.uploadUrl('up.txt'), { method: 'POST', body: form })
  assert.equal(put.status, 200)
  assert.equal(await sandbox.files.read('up.txt'), 'sent')
} finally {
  await sandbox.kill()
}
console.log('links: ok')
