package containers

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

const defaultDetachKeys = "ctrl-p,ctrl-q"

// killPatience bounds the passing on of one signal.
const killPatience = 10 * time.Second

type attachOptions struct {
	noStdin, sigProxy, noReplay bool
	detachKeys                  string
}

func newAttachCommand(env *cli.Env) *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use: "attach [flags] CONTAINER", Short: "Join a running container's terminal or pipes",
		Long: `Join a running container's terminal or pipes.

What the process wrote lately is shown first. The detach keys, ctrl-p ctrl-q unless
--detach-keys says otherwise, leave it running; where the process has a terminal and stdin is not
joined, ctrl-c does. The exit code is the process's own.`,
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runAttach(cmd.Context(), env, o, args[0]) },
	}
	cmd.Flags().BoolVar(&o.noStdin, "no-stdin", false, "only watch")
	cmd.Flags().BoolVar(&o.sigProxy, "sig-proxy", true, "pass signals on to the process, unless it has a terminal")
	cmd.Flags().BoolVar(&o.noReplay, "no-replay", false, "do not show what was written before")
	cmd.Flags().StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave it running")
	return cmd
}

func runAttach(ctx context.Context, env *cli.Env, o attachOptions, ref string) error {
	keys, err := cli.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	got, err := env.Containers().Get(ctx, &containersv1.GetRequest{Ref: ref})
	if err != nil {
		return err
	}
	spec := got.GetContainer().GetSpec()
	if err := wantTerminal(env, spec.GetTty() && spec.GetOpenStdin() && !o.noStdin, "attach", "add --no-stdin to watch only"); err != nil {
		return err
	}
	s, err := openAttach(ctx, env, &containersv1.AttachStart{
		Ref: got.GetContainer().GetMeta().GetId(), Replay: !o.noReplay, NoStdin: o.noStdin || !spec.GetOpenStdin(), Size: terminalSize(env, spec.GetTty()),
	})
	if err != nil {
		return err
	}
	s.tty, s.stdin, s.detachKeys, s.signals = spec.GetTty(), !o.noStdin && spec.GetOpenStdin(), keys, o.sigProxy && !spec.GetTty()
	exit, err := s.run(ctx)
	return ended(env, got.GetContainer(), exit, err)
}

// exited ends the program as the process ended.
func exited(exit *typesv1.Exit) error {
	if exit.GetCode() == 0 {
		return nil
	}
	return cli.Exit(int(exit.GetCode()))
}

func terminalSize(env *cli.Env, tty bool) *typesv1.TerminalSize {
	if fd, ok := env.OutTerminal(); ok && tty {
		return cli.TerminalSize(fd)
	}
	return nil
}

// openAttach opens the stream and says who it is for.
func openAttach(ctx context.Context, env *cli.Env, start *containersv1.AttachStart) (*session, error) {
	stream, err := env.Containers().Attach(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&containersv1.AttachRequest{Message: &containersv1.AttachRequest_Start{Start: start}}); err != nil {
		_, err = stream.Recv() // Send only says that the stream is over; Recv says why
		return nil, err
	}
	if start.GetAwait() {
		// The header comes once this client is registered: what is started then, it sees from byte one.
		// None, and no error: the stream is over, and Recv says why.
		header, err := stream.Header()
		if err == nil && header == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			return nil, err
		}
	}
	return &session{
		env: env,
		kill: func(signal string) error {
			ctx, cancel := context.WithTimeoutCause(ctx, killPatience, errors.New("the daemon does not answer"))
			defer cancel()
			_, err := env.Containers().Kill(ctx, &containersv1.KillRequest{Ref: start.GetRef(), Signal: signal})
			return err
		},
		send: func(in *typesv1.ProcessInput) error {
			return stream.Send(&containersv1.AttachRequest{Message: &containersv1.AttachRequest_Input{Input: in}})
		},
		recv: func() (*typesv1.ProcessOutput, error) {
			m, err := stream.Recv()
			return m.GetOutput(), err
		},
	}, nil
}
