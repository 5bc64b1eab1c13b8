// A server inside, and its clients outside. The two headers stand for the host name <port>-<id>.<domain>, which needs DNS.
import assert from 'node:assert/strict'
import http from 'node:http'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create('base', { network: { httpsPorts: [3443] } })
const edge = new URL(process.env.E2B_SANDBOX_URL)
const to = (port) => ({ 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': String(port) })
const get = (port, path = '/') => fetch(new URL(path, edge), { headers: to(port) })
try {
  await sandbox.files.write('server.mjs', `
    import http from 'node:http'
    const s = http.createServer((req, res) => {
      if (req.url === '/stream') { let n = 0; const t = setInterval(() => { res.write('tick ' + n + '\\n'); if (++n === 3) { clearInterval(t); res.end() } }, 50); return }
      let body = ''; req.on('data', d => body += d); req.on('end', () => res.end(JSON.stringify({ host: req.headers.host, method: req.method, body, id: req.headers['e2b-sandbox-id'] })))
    })
    s.on('upgrade', (req, socket) => { socket.write('HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n'); socket.pipe(socket) })
    s.listen(3000, () => console.log('up'))`)
  const closed = await get(3000)
  assert.deepEqual([closed.status, await closed.json()], [502, { sandboxId: sandbox.sandboxId, message: 'The sandbox is running but port is not open', code: 502, port: 3000 }])
  let up
  const ready = new Promise((r) => (up = r))
  await sandbox.commands.run('node server.mjs', { background: true, onStdout: up })
  await ready

  const answer = await (await fetch(edge, { method: 'POST', body: 'payload', headers: to(3000) })).json()
  assert.deepEqual([answer.method, answer.body, answer.id], ['POST', 'payload', undefined])
  assert.equal(await (await get(3000, '/stream')).text(), 'tick 0\ntick 1\ntick 2\n')

  const byName = await new Promise((resolve, reject) => http.get({
    host: edge.hostname, port: edge.port, headers: { Host: sandbox.getHost(3000) },
  }, (res) => { let b = ''; res.on('data', (d) => (b += d)); res.on('end', () => resolve(JSON.parse(b))) }).on('error', reject))
  assert.equal(byName.host, sandbox.getHost(3000))

  const echoed = await new Promise((resolve, reject) => {
    const req = http.request({ host: edge.hostname, port: edge.port, headers: { ...to(3000), Connection: 'Upgrade', Upgrade: 'echo' } })
    req.on('upgrade', (_, socket) => { socket.write('ping'); socket.once('data', (d) => { socket.end(); resolve(String(d)) }) })
    req.on('error', reject)
    req.end()
  })
  assert.equal(echoed, 'ping')
  assert.equal((await fetch(edge, { headers: { 'E2b-Sandbox-Id': sandbox.sandboxId } })).status, 400, 'one header is not enough')

  // A server that speaks TLS itself, with a certificate that it has made.
  await sandbox.commands.run('openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 -subj /CN=inside 2>&1')
  await sandbox.files.write('secure.mjs', `
    import fs from 'node:fs'
    import https from 'node:https'
    const options = { key: fs.readFileSync('key.pem'), cert: fs.readFileSync('cert.pem') }
    https.createServer(options, (req, res) => res.end('encrypted: ' + req.socket.encrypted)).listen(3443, () => console.log('up'))`)
  const secure = new Promise((r) => (up = r))
  await sandbox.commands.run('node secure.mjs', { background: true, onStdout: up })
  await secure
  assert.equal(await (await get(3443)).text(), 'encrypted: true')

  const guarded = await Sandbox.create('base', { network: { allowPublicTraffic: false } })
  const headers = { 'E2b-Sandbox-Id': guarded.sandboxId, 'E2b-Sandbox-Port': '3000' }
  assert.equal((await fetch(edge, { headers })).status, 403)
  assert.equal((await fetch(edge, { headers: { ...headers, 'e2b-traffic-access-token': guarded.trafficAccessToken } })).status, 502)
  await guarded.kill()
} finally {
  await sandbox.kill()
}
const gone = await get(3000)
assert.deepEqual([gone.status, await gone.json()], [502, { sandboxId: sandbox.sandboxId, message: 'The sandbox was not found', code: 502 }])
console.log('ports: ok')
