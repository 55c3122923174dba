// Command gantry is the operator's tool: it says to a gantryd what should be.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/gantryd/gantry/ctl/cli"
)

func main() {
	env := cli.NewEnv()
	err := newRootCommand(env).ExecuteContext(context.Background())
	var exit *cli.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Err != nil) {
		env.Complain(err)
	}
	os.Exit(cli.ExitCode(err))
}
