package containers

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

type startOptions struct {
	attach, interactive bool
	detachKeys          string
}

func newStartCommand(env *cli.Env) *cobra.Command {
	var o startOptions
	cmd := &cobra.Command{
		Use: "start [flags] CONTAINER...", Short: "Start containers that do not run",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runStart(cmd.Context(), env, o, args) },
	}
	cmd.Flags().BoolVarP(&o.attach, "attach", "a", false, "join its output, and end as it ends")
	cmd.Flags().BoolVarP(&o.interactive, "interactive", "i", false, "join its stdin as well")
	cmd.Flags().StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave it running")
	return cmd
}

func runStart(ctx context.Context, env *cli.Env, o startOptions, refs []string) error {
	if !o.attach && !o.interactive {
		return env.Each(ctx, refs, func(ctx context.Context, ref string) error {
			started, err := env.Containers().Start(ctx, &containersv1.StartRequest{Ref: ref})
			warn(env, started.GetContainer().GetStatus().GetWarnings())
			return err
		})
	}
	if len(refs) != 1 {
		return cli.Usagef("start --attach takes one container, not %d", len(refs))
	}
	keys, err := cli.DetachKeys(o.detachKeys)
	if err != nil {
		return err
	}
	got, err := env.Containers().Get(ctx, &containersv1.GetRequest{Ref: refs[0]})
	if err != nil {
		return err
	}
	c := got.GetContainer()
	stdin := o.interactive && c.GetSpec().GetOpenStdin()
	if err := wantTerminal(env, c.GetSpec().GetTty() && stdin, "start -i", "take -i away"); err != nil {
		return err
	}
	s, err := openAttach(ctx, env, &containersv1.AttachStart{
		Ref: c.GetMeta().GetId(), Replay: true, Await: true, NoStdin: !stdin, Size: terminalSize(env, c.GetSpec().GetTty()),
	})
	if err != nil {
		return err
	}
	started, err := env.Containers().Start(ctx, &containersv1.StartRequest{Ref: c.GetMeta().GetId()})
	if err != nil {
		return engineFailure(err)
	}
	warn(env, started.GetContainer().GetStatus().GetWarnings())
	s.tty, s.stdin, s.detachKeys, s.signals = c.GetSpec().GetTty(), stdin, keys, !c.GetSpec().GetTty()
	exit, err := s.run(ctx)
	return ended(env, c, exit, err)
}
