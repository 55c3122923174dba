// Command gantry is the operator's tool: it says to a gantryd what should be.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/gantryd/gantry/ctl/cli"
)

func main() {
	os.Exit(run(cli.NewEnv(), os.Args[1:]))
}

// run is one call of the command, and the code that it ends with.
func run(env *cli.Env, args []string) int {
	root := newRootCommand(env)
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	var exit *cli.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Err != nil) {
		env.Complain(err)
	}
	return cli.ExitCode(err)
}
