// Command go is the smallest useful client in Go: it makes a sandbox, puts a program into it, runs that, reads what it wrote, and ends
// the sandbox. The address and the key are those of SOULBOX_ADDR and SOULBOX_API_KEY.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

const program = `
import sys
text = sys.stdin.read()
open("/home/user/shout.txt", "w").write(text.upper())
print(len(text), "characters")
`

func run(ctx context.Context, out io.Writer) (err error) {
	client, err := api.New(api.Config{})
	if err != nil {
		return err
	}
	defer client.Close()
	lifetime := int64(60) // seconds: it ends even if this program is killed
	sandbox, err := client.CreateSandbox(ctx, api.CreateRequest{Template: "base", Timeout: &lifetime})
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if dErr := client.DeleteSandbox(end, sandbox.ID); err == nil {
			err = dErr
		}
	}()
	if err := client.WriteFile(ctx, sandbox.ID, "/home/user/shout.py", strings.NewReader(program), api.FileOptions{}); err != nil {
		return err
	}
	exit, err := client.Run(ctx, sandbox.ID, api.ExecRequest{Argv: []string{"python3", "/home/user/shout.py"}, Stdin: true},
		strings.NewReader("hello"), out, out)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return fmt.Errorf("the program ended with exit code %d", exit.Code)
	}
	file, _, err := client.ReadFile(ctx, sandbox.ID, "/home/user/shout.txt", api.FileOptions{})
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(out, file); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out)
	return err
}
