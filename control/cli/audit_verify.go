package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/keys"
)

func auditVerifyCommand(env *Env) *command {
	var (
		headFile, expect string
		asJSON           bool
	)
	return &command{
		synopsis: "Check that an audit log is as it was written",
		usage:    "[options] <folder>",
		about: `
Reads the audit log in a folder, or a copy of it, without a service, and
checks every event, the chain through them, and the signatures. It names the
first event that was changed, removed, added or moved, and ends with code 1
then.

Without -head the public keys in the folder itself are believed, and nothing
tells that the whole log was cut back to an earlier signed head.

    $ soulbox audit head >head.json
    $ soulbox audit verify -head=head.json /var/lib/soulbox/server/audit`,
		flags: func(o *options) {
			o.String(&headFile, "head", "<file>", `What "soulbox audit head" printed: the log must go as far, and be signed with these keys and no others.`, complete.PredictFiles("*"))
			o.String(&expect, "expect", "<index:hash>", "An event that must be in the log, with this hash.", nil)
			o.Switch(&asJSON, "json", "Print what was found as JSON.")
		},
		args: complete.PredictDirs("*"),
		run: func(_ context.Context, _ *connection, args []string) error {
			if len(args) != 1 {
				return usagef("name the folder of one audit log")
			}
			o, err := verifyOptions(headFile, expect)
			if err != nil {
				return err
			}
			r, err := audit.Verify(args[0], o)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(env.Stdout, struct {
					audit.Report
					Good     bool   `json:"good"`
					BadIndex uint64 `json:"bad_index,omitempty"`
					Problem  string `json:"problem,omitempty"`
				}{r, r.Bad == nil, badIndex(r.Bad), badProblem(r.Bad)})
			} else {
				err = printReport(env, r)
			}
			if err == nil && r.Bad != nil {
				return exitCode(1)
			}
			return err
		},
	}
}

func badIndex(bad *audit.DamageError) uint64 {
	if bad == nil {
		return 0
	}
	return bad.Index
}

func badProblem(bad *audit.DamageError) string {
	if bad == nil {
		return ""
	}
	return bad.Problem
}

func verifyOptions(headFile, expect string) (audit.VerifyOptions, error) {
	var o audit.VerifyOptions
	if headFile != "" {
		b, err := os.ReadFile(headFile)
		if err != nil {
			return o, fmt.Errorf("head: %w", err)
		}
		var st api.AuditState
		if err := json.Unmarshal(b, &st); err != nil {
			return o, fmt.Errorf("head %s: %w", headFile, err)
		}
		if len(st.Keys) == 0 {
			return o, fmt.Errorf("head %s: it has no keys; it is to be what \"%s audit head\" printed", headFile, Name)
		}
		for _, k := range st.Keys {
			o.Keys = append(o.Keys, audit.PublicKey{Version: keys.KeyVersion(k.Version), Algorithm: k.Algorithm, Key: k.Key})
		}
		if st.Last > 0 {
			if o.Expect, err = parseExpect(fmt.Sprintf("%d:%s", st.Last, st.LastHash)); err != nil {
				return o, fmt.Errorf("head %s: %w", headFile, err)
			}
		}
	}
	if expect != "" {
		e, err := parseExpect(expect)
		if err != nil {
			return o, usagef("-expect: %w", err)
		}
		o.Expect = e
	}
	return o, nil
}

func parseExpect(s string) (*audit.Expect, error) {
	index, hash, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(index, 10, 64)
	if !ok || err != nil || n == 0 {
		return nil, errors.New("it is not <index>:<hash>")
	}
	h, err := audit.ParseHash(hash)
	return &audit.Expect{Index: n, Hash: h}, err
}

func printReport(env *Env, r audit.Report) error {
	pairs := [][]string{
		{"Log", r.Log}, {"Server", r.Server}, {"Segments read", strconv.Itoa(r.Segments)},
		{"Events", fmt.Sprintf("%d to %d", r.First, r.Last)},
	}
	if r.Removed > 0 {
		pairs = append(pairs, []string{"Removed by retention", fmt.Sprintf("1 to %d, by a signed checkpoint", r.Removed)})
	}
	pairs = append(pairs, []string{"Signed heads", strconv.Itoa(r.Heads)}, []string{"Signed up to", strconv.FormatUint(r.SignedTo, 10)})
	if r.Waiting > 0 {
		pairs = append(pairs, []string{"Heads without a signature yet", strconv.Itoa(r.Waiting)})
	}
	if r.Bad == nil {
		pairs = append(pairs, []string{"Last hash", r.LastHash})
	}
	if err := printPairs(env.Stdout, pairs); err != nil {
		return err
	}
	out := func(format string, args ...any) { fmt.Fprintf(env.Stdout, format+"\n", args...) }
	if r.Bad != nil {
		out("\nBAD at event %d: %s", r.Bad.Index, printable(r.Bad.Problem))
		return nil
	}
	if r.Unsigned > 0 {
		out("\n%d events at the end are not signed yet: had others been cut off behind them, nothing would tell.", r.Unsigned)
	}
	if r.TornBytes > 0 {
		out("\n%d bytes at the end are no whole event: one that is being written, or what a crash left.", r.TornBytes)
	}
	if r.OwnKeys {
		out("\nThe keys are those in the folder itself: whoever can replace all of it is found with -head only.")
	}
	out("\nGOOD: the log is as it was written.")
	return nil
}
