// Package system is the system noun of the gantry command.
package system

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// Verbs returns the commands of the noun, in the order that help lists them.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{NewInfoCommand(env), newUsageCommand(env), newCheckCommand(env), NewEventsCommand(env), newDialCommand(env)}
}

// NewInfoCommand is "system info", which stands at the top level as well.
func NewInfoCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info [flags]", Short: "Show what the daemon and its host are",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInfo(cmd.Context(), env, format) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.Version}}', or json")
	return cmd
}

func runInfo(ctx context.Context, env *cli.Env, format string) error {
	i, err := env.System().Info(ctx, &systemv1.InfoRequest{})
	if err != nil {
		return err
	}
	lines := []struct{ Name, Value string }{
		{"Version", i.GetVersion()},
		{"Root", i.GetRoot()},
		{"State", i.GetState()},
		{"Instance", i.GetInstance()},
		{"Snapshotter", i.GetSnapshotter()},
		{"Runtimes", runtimeNames(i.GetRuntimes())},
		{"Containers", fmt.Sprintf("%d (%d running)", i.GetContainers(), i.GetRunning())},
		{"Images", fmt.Sprint(i.GetImages())},
		{"Kernel", i.GetKernel()},
		{"OS", i.GetOperatingSystem()},
		{"Architecture", i.GetArchitecture()},
		{"CPUs", fmt.Sprint(i.GetProcessors())},
		{"Memory", units.BytesSize(float64(i.GetMemoryBytes()))},
		{"Cgroups", i.GetCgroups()},
		{"Store", fmt.Sprintf("schema %d, revision %d, %d operations under way", i.GetStoreSchema(), i.GetRevision(), i.GetOperations())},
	}
	if format == "" {
		for _, l := range lines {
			_, _ = fmt.Fprintf(env.Out, "%-13s %s\n", l.Name+":", l.Value)
		}
		for _, w := range i.GetWarnings() {
			_, _ = fmt.Fprintln(env.Err, "warning: "+w)
		}
		return nil
	}
	runtimes, first := runtimeDocuments(i.GetRuntimes())
	doc := map[string]any{
		"Version": i.GetVersion(), "Root": i.GetRoot(), "State": i.GetState(), "Instance": i.GetInstance(), "Snapshotter": i.GetSnapshotter(),
		"Containers": i.GetContainers(), "ContainersRunning": i.GetRunning(), "Images": i.GetImages(), "KernelVersion": i.GetKernel(),
		"OperatingSystem": i.GetOperatingSystem(), "Architecture": i.GetArchitecture(), "NCPU": i.GetProcessors(), "MemTotal": i.GetMemoryBytes(),
		"Cgroups": i.GetCgroups(), "StoreSchema": i.GetStoreSchema(), "Revision": i.GetRevision(), "Operations": i.GetOperations(),
		"Runtimes": runtimes, "DefaultRuntime": first, "Warnings": append([]string{}, i.GetWarnings()...),
	}
	if format == "json" {
		return json.NewEncoder(env.Out).Encode(doc)
	}
	tmpl, err := cli.ParseTemplate(format)
	if err != nil {
		return err
	}
	return cli.Execute(env.Out, tmpl, doc)
}

// runtimeNames are the runtimes in one line.
func runtimeNames(rs []*systemv1.Runtime) string {
	var names []string
	for i, r := range rs {
		name := r.GetName()
		if i == 0 {
			name += " (default)"
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// runtimeDocuments are the runtimes as docker's users look them up: by name, with the path.
func runtimeDocuments(rs []*systemv1.Runtime) (all map[string]any, first string) {
	all = map[string]any{}
	for i, r := range rs {
		if i == 0 {
			first = r.GetName()
		}
		all[r.GetName()] = map[string]any{"Path": r.GetPath(), "Args": append([]string{}, r.GetArgs()...)}
	}
	return all, first
}

func newUsageCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "df [flags]", Short: "Show what takes how much disk",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := env.System().Usage(cmd.Context(), &systemv1.UsageRequest{})
			if err != nil {
				return err
			}
			t := &cli.Table{Columns: []cli.Column{
				{Title: "TYPE", Field: "Type"},
				{Title: "TOTAL", Field: "TotalCount"},
				{Title: "ACTIVE", Field: "Active"},
				{Title: "SIZE", Field: "Size"},
				{Title: "RECLAIMABLE", Field: "Reclaimable"},
			}}
			for _, u := range resp.GetUsage() {
				t.Rows = append(t.Rows, map[string]string{
					"Type": u.GetKind(), "TotalCount": fmt.Sprint(u.GetTotal()), "Active": fmt.Sprint(u.GetActive()),
					"Size": cli.Size(u.GetBytes()), "Reclaimable": cli.Size(u.GetReclaimableBytes()), "Bytes": fmt.Sprint(u.GetBytes()),
				})
			}
			return t.Write(env.Out, format)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a template: {{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}")
	return cmd
}

func newCheckCommand(env *cli.Env) *cobra.Command {
	var repair bool
	var format string
	cmd := &cobra.Command{
		Use: "check [flags]", Short: "Compare the store, the drivers, the directories and the kernel",
		Long: `Compare the store, the drivers, the directories and the kernel.

Each difference is one line. The exit code is 0 if there is none (or each was mended), else 1.

Not a difference is what a pull that was interrupted has left: blobs and unpacked layers that no image needs yet. The next
pull uses them, or the collector takes them after some hours. What lies in a driver's own directory is the driver's to keep
in order: it sweeps what it did not finish when it starts.`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCheck(cmd.Context(), env, repair, format) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "mend what can be mended")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a template: {{.Invariant}} {{.Subject}} {{.Detail}} {{.Repaired}}")
	return cmd
}

func runCheck(ctx context.Context, env *cli.Env, repair bool, format string) error {
	stream, err := env.System().Check(ctx, &systemv1.CheckRequest{Repair: repair})
	if err != nil {
		return err
	}
	t := &cli.Table{}
	left := 0
	err = cli.Stream(stream.Recv, func(m *systemv1.CheckResponse) error {
		if !m.GetRepaired() {
			left++
		}
		if format != "" {
			t.Rows = append(t.Rows, map[string]string{
				"Invariant": m.GetInvariant(), "Subject": m.GetSubject(), "Detail": m.GetDetail(), "Repaired": fmt.Sprint(m.GetRepaired()),
			})
			return nil
		}
		mended := ""
		if m.GetRepaired() {
			mended = " (mended)"
		}
		_, err := fmt.Fprintf(env.Out, "%s: %s: %s%s\n", m.GetInvariant(), m.GetSubject(), m.GetDetail(), mended)
		return err
	})
	if err != nil {
		return err
	}
	if format != "" {
		if err := t.Write(env.Out, format); err != nil {
			return err
		}
	}
	if left > 0 {
		return &cli.ExitError{Code: 1, Err: fmt.Errorf("%d difference(s); \"gantry system check --repair\" mends what can be mended", left)}
	}
	return nil
}

// newDialCommand joins stdin and stdout to the daemon's socket: the far end of ssh://.
func newDialCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "dial-stdio", Short: "Join stdin and stdout to the daemon's socket", Hidden: true,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, ok := strings.CutPrefix(env.Host, "unix://")
			if !ok {
				return cli.Usagef("dial-stdio: %s is no unix socket", env.Host)
			}
			var d net.Dialer
			conn, err := d.DialContext(cmd.Context(), "unix", path)
			if err != nil {
				return err
			}
			defer conn.Close() //nolint:errcheck // both directions have ended
			go func() {
				_, _ = io.Copy(conn, env.In)
				_ = conn.(*net.UnixConn).CloseWrite() //nolint:forcetypeassert // it was dialled as one
			}()
			_, err = io.Copy(env.Out, conn)
			return err
		},
	}
}
