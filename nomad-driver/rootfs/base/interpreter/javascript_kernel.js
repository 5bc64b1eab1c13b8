// The JavaScript kernel: cells run in one realm, and what they declare at their top level is there in later cells, and may be declared again.
//
// A cell becomes the body of an async function, so that it may await; its declarations become assignments to globals, its imports become
// dynamic ones, and its last expression is its result. Types of a TypeScript cell are taken away by esbuild before.
'use strict'

const fs = require('node:fs')
const net = require('node:net')
const util = require('node:util')
const vm = require('node:vm')
const { createRequire } = require('node:module')
const { spawnSync } = require('node:child_process')
const acorn = require('/usr/share/nodejs/acorn')

const [requests, events] = process.argv.slice(2, 4).map(Number)
const typescript = process.argv[4] === 'typescript'
const maxEvent = 32 << 20
const ack = Buffer.alloc(1)
let count = 0
let interrupt = null // of the cell that runs
let last = null // the stream that was written to last

// send passes an event on and waits until the server has it, and all output before it.
function send(type, fields = {}) {
  let line = JSON.stringify({ type, ...fields })
  if (line.length > maxEvent) {
    line = JSON.stringify({ type: 'error', name: 'OutputTooLarge', traceback: '', value: `one output of ${line.length} bytes, at most ${maxEvent} are passed on` })
  }
  let rest = Buffer.from(line + '\n')
  while (rest.length > 0) rest = rest.subarray(fs.writeSync(events, rest))
  fs.readSync(events, ack, 0, 1)
}

for (const stream of [process.stdout, process.stderr]) {
  const write = stream.write
  stream.write = function (...args) {
    if (last !== null && last !== stream) send('sync')
    last = stream
    return write.apply(stream, args)
  }
}

function javascript(code) {
  if (!typescript) return code
  const raw = '--tsconfig-raw={"compilerOptions":{"verbatimModuleSyntax":true}}'
  const r = spawnSync('/usr/bin/esbuild', ['--loader=ts', '--format=esm', '--target=esnext', '--log-level=error', raw], { input: code, maxBuffer: 1 << 28 })
  if (r.error) throw r.error
  if (r.status !== 0) throw new SyntaxError(String(r.stderr).trim())
  return String(r.stdout)
}

function parse(code) {
  const options = { ecmaVersion: 'latest', allowAwaitOutsideFunction: true, allowHashBang: true }
  try {
    return acorn.parse(code, { ...options, sourceType: 'module' })
  } catch (e) {
    try {
      return acorn.parse(code, { ...options, sourceType: 'script' }) // what is no module may be an older script
    } catch {
      throw new SyntaxError(e.message)
    }
  }
}

// bound adds the names that a pattern binds.
function bound(pattern, names) {
  switch (pattern?.type) {
    case 'Identifier':
      names.add(pattern.name)
      break
    case 'ObjectPattern':
      for (const p of pattern.properties) bound(p.type === 'RestElement' ? p.argument : p.value, names)
      break
    case 'ArrayPattern':
      for (const e of pattern.elements) bound(e, names)
      break
    case 'AssignmentPattern':
      bound(pattern.left, names)
      break
    case 'RestElement':
      bound(pattern.argument, names)
  }
}

// program returns the script of a cell: an expression whose value is a function that runs it.
function program(code) {
  const names = new Set()
  const hoisted = []
  const edits = [] // [from, to, text]
  const text = (n) => code.slice(n.start, n.end)
  const body = parse(code).body
  const declare = (n) => {
    switch (n.type) {
      case 'VariableDeclaration': {
        const parts = []
        for (const d of n.declarations) {
          bound(d.id, names)
          if (d.init) parts.push([d.id, d.init])
          else if (n.kind !== 'var') parts.push([d.id, null])
        }
        // Only what is between the parts changes, so that lines stay where they are.
        const set = parts.map(([id, init]) => `(${text(id)} = ${init ? text(init) : 'undefined'})`)
        edits.push([n.start, n.end, `${set.length ? `void (${set.join(', ')})` : ''};`])
        break
      }
      case 'FunctionDeclaration':
        names.add(n.id.name)
        hoisted.push(n.id.name)
        break
      case 'ClassDeclaration':
        names.add(n.id.name)
        edits.push([n.start, n.start, `${n.id.name} = `], [n.end, n.end, ';'])
    }
  }
  body.forEach((n, i) => {
    switch (n.type) {
      case 'ImportDeclaration': {
        const from = `await import(${n.source.raw})`
        const named = []
        let out = ''
        for (const s of n.specifiers) {
          names.add(s.local.name)
          if (s.type === 'ImportNamespaceSpecifier') out += `${s.local.name} = ${from};`
          else named.push(`${s.type === 'ImportDefaultSpecifier' ? 'default' : text(s.imported)}: ${s.local.name}`)
        }
        if (named.length > 0) out += `({${named.join(', ')}} = ${from});`
        edits.push([n.start, n.end, out || `${from};`])
        break
      }
      case 'ExportNamedDeclaration':
        if (n.declaration) {
          edits.push([n.start, n.declaration.start, ''])
          declare(n.declaration)
        } else edits.push([n.start, n.end, ';'])
        break
      case 'ExportAllDeclaration':
        edits.push([n.start, n.end, ';'])
        break
      case 'ExportDefaultDeclaration':
        edits.push([n.start, n.declaration.start, 'void '])
        break
      case 'ExpressionStatement':
        if (i === body.length - 1) edits.push([n.start, n.end, `return { value: (${text(n.expression)}\n) };`])
        break
      default:
        declare(n)
    }
  })
  edits.sort((a, b) => b[0] - a[0] || b[1] - a[1])
  let out = code.replace(/^#!/, '//')
  for (const [from, to, t] of edits) out = out.slice(0, from) + t + out.slice(to)
  const globals = names.size ? `var ${[...names].join(', ')}; ` : ''
  const hoist = hoisted.map((f) => `globalThis.${f} = ${f}; `).join('')
  return `${globals}(async () => { ${hoist}${out}\n})`
}

async function execute(code) {
  const script = new vm.Script(program(javascript(code)), {
    filename: `cell-${count}.js`,
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  })
  globalThis.__soulbox_cell = script.runInThisContext()
  const interrupted = new Promise((_, reject) => {
    interrupt = () => reject(Object.assign(new Error('the execution was interrupted'), { name: 'KeyboardInterrupt' }))
  })
  interrupted.catch(() => {})
  // The part before the first await may be an endless loop, which only this can end.
  const run = vm.runInThisContext('__soulbox_cell()', { breakOnSigint: true })
  const result = await Promise.race([run, interrupted])
  if (result !== undefined && result.value !== undefined) {
    const v = result.value
    send('data', { main: true, data: { 'text/plain': typeof v === 'string' ? v : util.inspect(v) } })
  }
}

function failure(e) {
  if (e instanceof Error || (e && typeof e === 'object' && 'stack' in e && 'message' in e)) {
    const name = e.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED' ? 'KeyboardInterrupt' : String(e.name)
    const stack = String(e.stack).split('\n')
    const ours = stack.findIndex((l) => l.includes('evalmachine.<anonymous>') || l.includes(__filename))
    return { name, value: String(e.message), traceback: stack.slice(0, ours < 0 ? undefined : ours).join('\n') }
  }
  return { name: 'Error', value: util.inspect(e), traceback: `Uncaught ${util.inspect(e)}` }
}

async function cell({ code, env }) {
  count++
  send('started', { count })
  const saved = Object.fromEntries(Object.keys(env).map((k) => [k, process.env[k]]))
  Object.assign(process.env, env)
  try {
    await execute(code)
  } catch (e) {
    send('error', failure(e))
  } finally {
    interrupt = null
    for (const [k, v] of Object.entries(saved)) {
      if (v === undefined) delete process.env[k]
      else process.env[k] = v
    }
  }
  send('done')
}

process.on('SIGINT', () => interrupt?.())
process.on('uncaughtException', (e) => console.error(e))
process.on('unhandledRejection', (e) => console.error(e))

globalThis.require = createRequire(process.cwd() + '/')
globalThis.module = { exports: {} }
globalThis.exports = globalThis.module.exports

let rest = ''
let turn = Promise.resolve()
const input = new net.Socket({ fd: requests, readable: true, writable: false })
input.setEncoding('utf8')
input.on('data', (data) => {
  rest += data
  for (let i = rest.indexOf('\n'); i >= 0; i = rest.indexOf('\n')) {
    const request = JSON.parse(rest.slice(0, i))
    rest = rest.slice(i + 1)
    turn = turn.then(() => cell(request))
  }
})
input.on('close', () => process.exit(0))
