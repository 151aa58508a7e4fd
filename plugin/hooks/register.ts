// The cue: which workspace this session works on, pinned under the prompt by Claude Code versions that know
// hooks modules. Older ones pass over this file; there, and for colours, the status line does the same.
//
// It decides nothing. What it shows is the text of `runcode statusline --plain`, which reads local files only and
// prints a line for the session that is attached, and for no other.
import type { Register } from 'claude-code'

// An attachment may end by itself or be changed by a command between two turns.
const EVERY_MS = 10_000
const PATIENCE_MS = 5_000
const LINE = /^working-on:[\x21-\x7e]+ (?:~\d+m|<1m)$/

export const register: Register = on => {
  let folder: string
  let look: (() => Promise<void>) | undefined

  on('session.start', async ($, e, next) => {
    const started = await next(e)
    folder = e.cwd
    if (!e.isInteractive) {
      return started
    }
    if (look === undefined) {
      look = async () => {
        try {
          const statusLine = JSON.stringify((await $.settings.read({ key: 'statusLine' })) ?? null)
          if (/\bruncode\b.*\bstatusline\b/.test(statusLine)) {
            // The person has the line already: one is enough.
            $.ui.status(undefined)
            return
          }
          // Asked for each time: the session's id is another one after /clear.
          const env = await $.process.hookEnv()
          const stdin = JSON.stringify({ session_id: env.CLAUDE_CODE_SESSION_ID, cwd: folder })
          const argv = [`${$.plugin.root}/bin/runcode`, 'statusline', '--plain']
          const { exitCode, stdout } = await $.process.run(argv, { env, stdin, timeoutMs: PATIENCE_MS })
          const line = stdout.trim()
          $.ui.status(exitCode === 0 && LINE.test(line) ? line : undefined)
        } catch {
          // A cue that may be stale is worse than none.
          $.ui.status(undefined)
        }
      }
      $.clock.every(EVERY_MS, look)
    }
    // Not waited for: a slow launcher must not hold up the person's first prompt.
    void look()
    return started
  })

  on('turn.complete', async ($, e, next) => {
    const done = await next(e)
    void look?.()
    return done
  })
}
