package cli

import (
	"context"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

// predictTime is how long a person who pressed the tab key waits at most.
const predictTime = time.Second

// maxPredict is how many sandboxes are looked at: nobody reads more.
const maxPredict = 1000

// predict completes with what ask gets from the service. Whatever fails, nothing is said: the person is in the middle of a line.
func predict(env *Env, ask func(context.Context, *api.Client) []string) complete.Predictor {
	return complete.PredictFunc(func(a complete.Args) []string {
		ctx, cancel := context.WithTimeout(context.Background(), predictTime)
		defer cancel()
		quiet := *env
		quiet.Stderr = discard{}
		conn := &connection{env: &quiet}
		conn.address, conn.apiKey = flagIn(a.All, "address"), flagIn(a.All, "api-key")
		client, err := conn.client()
		if err != nil {
			return nil
		}
		defer conn.close()
		var out []string
		for _, s := range ask(ctx, client) {
			if strings.HasPrefix(s, a.Last) && printable(s) == s && !strings.ContainsAny(s, " \n\t'\"`$\\;&|<>(){}*?!") {
				out = append(out, s)
			}
		}
		return out
	})
}

// flagIn finds the value of a flag on a line that is not complete.
func flagIn(words []string, name string) string {
	for i, w := range words {
		w = strings.TrimPrefix(strings.TrimPrefix(w, "-"), "-")
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			return v
		}
		if w == name && i+1 < len(words) {
			return words[i+1]
		}
	}
	return ""
}

// sandboxNames completes ids of sandboxes; all says whether those that have ended count.
func sandboxNames(env *Env, all bool) complete.Predictor {
	return predict(env, func(ctx context.Context, client *api.Client) []string {
		var o api.ListOptions
		if all {
			o.States = states
		}
		list, _, err := collect(ctx, client, o, maxPredict)
		if err != nil {
			return nil
		}
		ids := make([]string, 0, len(list))
		for _, s := range list {
			ids = append(ids, s.ID.String())
		}
		return ids
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
