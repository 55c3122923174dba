package containers

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

type execOptions struct {
	interactive, tty, detach  bool
	privileged                bool
	env, envFiles             []string
	user, workdir, detachKeys string
}

func newExecCommand(env *cli.Env) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use: "exec [flags] CONTAINER COMMAND [ARG...]", Short: "Run another command in a running container",
		Long: `Run another command in a running container.

The exit code is the command's own, 125 if gantry could not, 126 if the command cannot be
executed and 127 if it is not there.`,
		Example: "  gantry exec -it web sh\n  gantry exec -u postgres db psql -c 'select 1'",
		Args:    engineArgs(cli.MinArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return engineFailure(runExec(cmd.Context(), env, o, args))
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&o.interactive, "interactive", "i", false, "pass stdin on")
	fs.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVarP(&o.detach, "detach", "d", false, "do not wait for it")
	fs.StringArrayVarP(&o.env, "env", "e", nil, "set a variable: KEY=VALUE, or KEY to pass on this shell's")
	fs.StringArrayVar(&o.envFiles, "env-file", nil, "read variables from a file, one a line")
	fs.StringVarP(&o.user, "user", "u", "", "name or uid, and group: name|uid[:group|gid]")
	fs.StringVarP(&o.workdir, "workdir", "w", "", "working directory in the container")
	fs.BoolVar(&o.privileged, "privileged", false, "give the command every capability")
	fs.StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave it running")
	return cmd
}

func runExec(ctx context.Context, env *cli.Env, o execOptions, args []string) error {
	keys, err := cli.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if err := wantTerminal(env, o.tty && o.interactive && !o.detach, "-it", "take -t away"); err != nil {
		return err
	}
	f := specFlags{env: o.env, envFiles: o.envFiles}
	var spec containersv1.Spec
	if err := f.environment(&spec); err != nil {
		return err
	}
	stream, err := env.Containers().Exec(ctx)
	if err != nil {
		return err
	}
	start := &containersv1.ExecStart{
		Ref: args[0], Args: args[1:], Env: spec.GetEnv(), User: o.user, Workdir: o.workdir, Tty: o.tty,
		Detach: o.detach, OpenStdin: o.interactive && !o.detach, Size: terminalSize(env, o.tty), Privileged: o.privileged,
	}
	if err := stream.Send(&containersv1.ExecRequest{Message: &containersv1.ExecRequest_Start{Start: start}}); err != nil {
		_, err = stream.Recv() // Send only says that the stream is over; Recv says why
		return err
	}
	s := &session{
		env: env, tty: o.tty && !o.detach, stdin: o.interactive && !o.detach, detachKeys: keys, signals: !o.detach,
		send: func(in *typesv1.ProcessInput) error {
			return stream.Send(&containersv1.ExecRequest{Message: &containersv1.ExecRequest_Input{Input: in}})
		},
		recv: func() (*typesv1.ProcessOutput, error) {
			m, err := stream.Recv()
			return m.GetOutput(), err
		},
	}
	exit, err := s.run(ctx)
	switch {
	case errors.Is(err, errDetached):
		return nil
	case cli.Cut(err):
		return fmt.Errorf("exec in container %s: the daemon went away meanwhile; the container goes on, and so may the command: %w", args[0], err)
	case err != nil:
		return err
	case exit == nil && !o.detach:
		return fmt.Errorf("exec in container %s: the daemon ended the stream without saying how the command ended", args[0])
	}
	return exited(exit)
}
