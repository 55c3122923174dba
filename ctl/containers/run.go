package containers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// The codes with which run and exec end where the process has none, as docker's users expect.
const (
	exitEngine        = 125 // gantry could not
	exitNotExecutable = 126 // the command is there and cannot be executed
	exitNotFound      = 127 // the command is not there
)

type runOptions struct {
	specFlags
	detach, sigProxy bool
	detachKeys       string
}

func newRunCommand(env *cli.Env) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use: "run [flags] IMAGE [COMMAND] [ARG...]", Short: "Make a container, start it, and join it",
		Long: `Make a container, start it, and join it.

The exit code is the process's own, 128 + N if signal N ended it, 125 if gantry could not,
126 if the command cannot be executed and 127 if it is not there.`,
		Example: `  gantry run hello
  gantry run -it --rm debian bash
  gantry run -d --name web -p 8080:80 -v "$PWD/site:/usr/share/nginx/html:ro" nginx`,
		Args: engineArgs(cli.MinArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := runRun(cmd, env, &o, args)
			return engineFailure(err)
		},
	}
	o.add(cmd.Flags())
	cmd.Flags().BoolVarP(&o.detach, "detach", "d", false, "do not wait for it; print its id")
	cmd.Flags().BoolVar(&o.sigProxy, "sig-proxy", true, "pass signals on to the process")
	cmd.Flags().StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave it running")
	return cmd
}

// engineFailure gives a failure of gantry's the code that run and exec have for it.
func engineFailure(err error) error {
	var exit *cli.ExitError
	if err == nil || errors.As(err, &exit) && exit.Err == nil {
		return err
	}
	code := exitEngine
	switch cli.Reason(err) {
	case "command-not-found":
		code = exitNotFound
	case "command-not-executable":
		code = exitNotExecutable
	}
	return &cli.ExitError{Code: code, Err: err}
}

// engineArgs gives what wants arguments the code that run and exec have for gantry's own failures.
func engineArgs(want cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return engineFailure(want(cmd, args)) }
}

func runRun(cmd *cobra.Command, env *cli.Env, o *runOptions, args []string) error {
	ctx := cmd.Context()
	keys, err := cli.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if err := wantTerminal(env, o.tty && o.interactive && !o.detach, "-it", "take -t away"); err != nil {
		return err
	}
	req, err := o.request(cmd, args)
	if err != nil {
		return err
	}
	// A terminal that is left has not come to its end; a pipe that broke has.
	req.Spec.StdinOnce = o.interactive && !o.detach && !o.tty
	c, err := o.create(ctx, env, req)
	if err != nil {
		return err
	}
	if o.detach {
		return runDetached(ctx, env, c)
	}
	return runJoined(ctx, env, o, c, keys)
}

// wantTerminal refuses to join a process's terminal to a stdin that is none: at its end the process would
// read the end of its own, and a shell leaves then.
func wantTerminal(env *cli.Env, want bool, what, instead string) error {
	if _, ok := env.InTerminal(); want && !ok {
		return cli.Usagef("%s: stdin is no terminal, and that of the process is; %s, or run this from a terminal", what, instead)
	}
	return nil
}

func runDetached(ctx context.Context, env *cli.Env, c *containersv1.Container) error {
	started, err := env.Containers().Start(ctx, &containersv1.StartRequest{Ref: c.GetMeta().GetId()})
	if err != nil {
		return discard(ctx, env, c, err)
	}
	warn(env, started.GetContainer().GetStatus().GetWarnings())
	_, err = fmt.Fprintln(env.Out, c.GetMeta().GetId())
	return err
}

// discard removes a container that was to be removed and never started.
func discard(ctx context.Context, env *cli.Env, c *containersv1.Container, cause error) error {
	if c.GetSpec().GetRemoveOnExit() {
		_, err := env.Containers().Remove(ctx, &containersv1.RemoveRequest{Ref: c.GetMeta().GetId(), Force: true})
		if err != nil && cli.Code(err) != codes.NotFound {
			env.Complain(err)
		}
	}
	return cause
}

func runJoined(ctx context.Context, env *cli.Env, o *runOptions, c *containersv1.Container, keys []byte) error {
	id := c.GetMeta().GetId()
	joined, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	s, err := openAttach(joined, env, &containersv1.AttachStart{
		Ref: id, Replay: true, Await: true, NoStdin: !o.interactive, Size: terminalSize(env, o.tty),
	})
	if err != nil {
		return discard(ctx, env, c, err)
	}
	started, err := env.Containers().Start(ctx, &containersv1.StartRequest{Ref: id})
	if err != nil {
		return discard(ctx, env, c, err)
	}
	warn(env, started.GetContainer().GetStatus().GetWarnings())
	s.tty, s.stdin, s.detachKeys, s.signals = o.tty, o.interactive, keys, o.sigProxy
	exit, err := s.run(joined)
	if c.GetSpec().GetRemoveOnExit() && exit != nil {
		removed(ctx, env, id)
	}
	return ended(env, c, exit, err)
}

// removalLimit bounds how long --rm waits for what it promised: the name is free, the disk too.
const removalLimit = 10 * time.Second

// removed waits until a container is gone. That it takes longer, or that the daemon goes meanwhile, is
// no failure of what ran: the daemon, or the next one, removes it all the same.
func removed(ctx context.Context, env *cli.Env, id string) {
	ctx, cancel := context.WithTimeoutCause(ctx, removalLimit, context.DeadlineExceeded)
	defer cancel()
	_, _ = env.Containers().Wait(ctx, &containersv1.WaitRequest{Ref: id, Until: containersv1.WaitRequest_UNTIL_REMOVED})
}

// ended turns the end of a session into the end of the program.
func ended(env *cli.Env, c *containersv1.Container, exit *typesv1.Exit, err error) error {
	switch {
	case errors.Is(err, errDetached):
		return nil
	case cli.Code(err) == codes.Unavailable:
		return fmt.Errorf("the daemon went away; container %s goes on: join it again with \"gantry attach %s\", read it with \"gantry logs %s\": %w",
			c.GetMeta().GetName(), c.GetMeta().GetName(), c.GetMeta().GetName(), err)
	case err != nil:
		return err
	case exit == nil:
		return fmt.Errorf("container %s: the daemon ended the stream without saying how the process ended; see \"gantry ps -a\"", c.GetMeta().GetName())
	case exit.GetReason() != "":
		_, _ = fmt.Fprintf(env.Err, "gantry: container %s ended: %s\n", c.GetMeta().GetName(), reasonText(exit.GetReason()))
	}
	return exited(exit)
}

func reasonText(reason string) string {
	switch reason {
	case "oom":
		return "it needed more memory than it may have (see --memory)"
	case "shim-lost":
		return "the process beside it, gantry-shim, was killed"
	case "host-rebooted":
		return "the machine was restarted"
	}
	return reason
}
