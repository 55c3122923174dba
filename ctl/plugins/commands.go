// Package plugins is the plugin noun of the gantry command.
package plugins

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/ctl/cli"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// Verbs returns the commands of the noun, in the order that help lists them.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{newListCommand(env), newInspectCommand(env), newRestartCommand(env)}
}

// split parses FAMILY/NAME, the way plugins are named everywhere.
// choose finds the driver that ref means: FAMILY/NAME, or NAME where one family has it.
func choose(found []*systemv1.Plugin, ref string) (*systemv1.Plugin, error) {
	var means []*systemv1.Plugin
	for _, p := range found {
		if ref == p.GetFamily()+"/"+p.GetName() || ref == p.GetName() {
			means = append(means, p)
		}
	}
	switch len(means) {
	case 0:
		return nil, status.Errorf(codes.NotFound, "plugin %s: there is none of that name; \"gantry plugin ls\" lists them", ref)
	case 1:
		return means[0], nil
	}
	return nil, cli.Usagef("plugin %q: %d families have one; write FAMILY/NAME, as in %s/%s", ref, len(means), means[0].GetFamily(), ref)
}

func list(ctx context.Context, env *cli.Env) ([]*systemv1.Plugin, error) {
	stream, err := env.System().ListPlugins(ctx, &systemv1.ListPluginsRequest{})
	if err != nil {
		return nil, err
	}
	var found []*systemv1.Plugin
	err = cli.Stream(stream.Recv, func(m *systemv1.ListPluginsResponse) error {
		found = append(found, m.GetPlugin())
		return nil
	})
	return found, err
}

func state(p *systemv1.Plugin) string {
	if p.GetState() == systemv1.Plugin_STATE_UNSPECIFIED {
		return "idle" // not needed so far
	}
	return strings.ToLower(strings.TrimPrefix(p.GetState().String(), "STATE_"))
}

func newListCommand(env *cli.Env) *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls [flags]", Short: "List driver processes", Aliases: []string{"list"},
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env, format, quiet) },
	}
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a template: {{.Plugin}} {{.Version}} {{.State}} {{.Pid}} {{.Crashes}} {{.Capabilities}} {{.Error}}")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only names")
	return cmd
}

func runList(ctx context.Context, env *cli.Env, format string, quiet bool) error {
	found, err := list(ctx, env)
	if err != nil {
		return err
	}
	t := &cli.Table{Columns: []cli.Column{
		{Title: "PLUGIN", Field: "Plugin"},
		{Title: "VERSION", Field: "Version"},
		{Title: "STATE", Field: "State"},
		{Title: "PID", Field: "Pid"},
		{Title: "CRASHES", Field: "Crashes"},
		{Title: "CAPABILITIES", Field: "Capabilities"},
	}}
	for _, p := range found {
		name := p.GetFamily() + "/" + p.GetName()
		if quiet && format == "" {
			if _, err := fmt.Fprintln(env.Out, name); err != nil {
				return err
			}
			continue
		}
		pid := ""
		if p.GetPid() != 0 {
			pid = fmt.Sprint(p.GetPid())
		}
		t.Rows = append(t.Rows, map[string]string{
			"Plugin": name, "Version": p.GetVersion(), "State": state(p), "Pid": pid,
			"Crashes": fmt.Sprint(p.GetCrashes()), "Capabilities": strings.Join(p.GetCapabilities(), ","), "Error": p.GetLastError(), "Path": p.GetPath(), "Log": p.GetLog(),
		})
	}
	if quiet && format == "" {
		return nil
	}
	return t.Write(env.Out, format)
}

type inspectDocument struct {
	Family, Name, Version, State string
	Protocol                     uint32
	Capabilities                 []string
	Pid, Crashes, Calls          uint32
	LastError, Path, Log         string
	StartedAt                    string
}

func newInspectCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect [flags] [FAMILY/]NAME...", Short: "Show all that is known of driver processes",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := list(cmd.Context(), env)
			if err != nil {
				return err
			}
			return env.Inspect(format, args, func(ref string) (any, error) { return document(found, ref) })
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.Pid}}', or json")
	return cmd
}

func document(found []*systemv1.Plugin, ref string) (any, error) {
	p, err := choose(found, ref)
	if err != nil {
		return nil, err
	}
	d := &inspectDocument{
		Family: p.GetFamily(), Name: p.GetName(), Version: p.GetVersion(), State: state(p), Protocol: p.GetProtocol(),
		Capabilities: append([]string{}, p.GetCapabilities()...), Pid: p.GetPid(), Crashes: p.GetCrashes(), Calls: p.GetCalls(),
		LastError: p.GetLastError(), Path: p.GetPath(), Log: p.GetLog(),
	}
	if p.GetStartedAt() != nil {
		d.StartedAt = p.GetStartedAt().AsTime().Format("2006-01-02T15:04:05.000Z07:00")
	}
	return d, nil
}

func newRestartCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "restart [FAMILY/]NAME...", Short: "Replace driver processes; calls to them wait meanwhile",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				family, name, whole := strings.Cut(ref, "/")
				if !whole {
					found, err := list(ctx, env)
					if err != nil {
						return err
					}
					p, err := choose(found, ref)
					if err != nil {
						return err
					}
					family, name = p.GetFamily(), p.GetName()
				}
				_, err := env.System().RestartPlugin(ctx, &systemv1.RestartPluginRequest{Family: family, Name: name})
				return err
			})
		},
	}
}
