// Package snapshots is the snapshot noun of the gantry command.
package snapshots

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
)

// Verbs returns the commands of the noun, in the order that help lists them.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{newListCommand(env), newUsageCommand(env)}
}

func newListCommand(env *cli.Env) *cobra.Command {
	var snapshotter, format string
	cmd := &cobra.Command{
		Use: "ls [flags]", Short: "List the filesystems that the storage drivers hold", Aliases: []string{"list"},
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env, snapshotter, format) },
	}
	cmd.Flags().StringVar(&snapshotter, "snapshotter", "", "only this storage driver's")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a template: {{.Snapshotter}} {{.Key}} {{.Parent}} {{.Kind}}")
	return cmd
}

func runList(ctx context.Context, env *cli.Env, snapshotter, format string) error {
	stream, err := env.Snapshots().List(ctx, &snapshotsv1.ListRequest{Snapshotter: snapshotter})
	if err != nil {
		return err
	}
	t := &cli.Table{Columns: []cli.Column{
		{Title: "SNAPSHOTTER", Field: "Snapshotter"},
		{Title: "KEY", Field: "Key"},
		{Title: "PARENT", Field: "Parent"},
		{Title: "KIND", Field: "Kind"},
	}}
	err = cli.Stream(stream.Recv, func(m *snapshotsv1.ListResponse) error {
		s := m.GetSnapshot()
		t.Rows = append(t.Rows, map[string]string{
			"Snapshotter": s.GetSnapshotter(), "Key": s.GetKey(), "Parent": s.GetParent(),
			"Kind": strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "KIND_")),
		})
		return nil
	})
	if err != nil {
		return err
	}
	return t.Write(env.Out, format)
}

func newUsageCommand(env *cli.Env) *cobra.Command {
	var snapshotter string
	cmd := &cobra.Command{
		Use: "usage [flags] KEY", Short: "Show what one filesystem takes, without what it stands on",
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := env.Snapshots().Usage(cmd.Context(), &snapshotsv1.UsageRequest{Snapshotter: snapshotter, Key: args[0]})
			if err != nil {
				return err
			}
			return (&cli.Table{
				Columns: []cli.Column{{Title: "SIZE", Field: "Size"}, {Title: "INODES", Field: "Inodes"}},
				Rows:    []map[string]string{{"Size": cli.Size(u.GetBytes()), "Inodes": cli.Count(u.GetInodes())}},
			}).Write(env.Out, "")
		},
	}
	cmd.Flags().StringVar(&snapshotter, "snapshotter", "overlay", "storage driver")
	return cmd
}
