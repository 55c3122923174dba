package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	"github.com/gantryd/gantry/ctl/containers"
	"github.com/gantryd/gantry/ctl/images"
	"github.com/gantryd/gantry/ctl/networks"
	"github.com/gantryd/gantry/ctl/plugins"
	"github.com/gantryd/gantry/ctl/snapshots"
	"github.com/gantryd/gantry/ctl/system"
	"github.com/gantryd/gantry/ctl/volumes"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// version is set by the linker.
var version = "dev"

const longHelp = `gantry makes, runs and shows containers, through a gantryd.

Exit codes: 0 done · 1 internal, or something differs · 2 fix the command · 3 not found · 4 exists already
5 change the state first · 6 someone else is at it, try again · 7 not available, wait · 8 out of time or
interrupted · 9 this driver cannot. Of run and exec: the process's own, 125, 126, 127.`

// newRootCommand builds the whole tree of commands. Nothing here talks to a daemon.
func newRootCommand(env *cli.Env) *cobra.Command {
	var showVersion bool
	root := &cobra.Command{
		Use: "gantry", Short: "Make, run and show containers", Long: longHelp,
		SilenceUsage: true, SilenceErrors: true, TraverseChildren: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ";"
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", near[0])
			}
			return cli.Usagef("%q is no command of gantry%s see \"gantry --help\"", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if showVersion {
				_, err := fmt.Fprintln(env.Out, "gantry version "+version)
				return err
			}
			return cmd.Help()
		},
	}
	root.Flags().BoolVarP(&showVersion, "version", "v", false, "show the version of this tool; \"gantry version\" shows the daemon's as well")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return flagError(cmd, err)
	})
	root.SuggestionsMinimumDistance = 2
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	fs := root.PersistentFlags()
	fs.StringVarP(&env.Host, "host", "H", envOr("GANTRY_HOST", cli.DefaultHost), "daemon to talk to: unix://, tcp:// (with the --tls flags), ssh://")
	fs.StringVar(&env.TLS.CA, "tls-ca", os.Getenv("GANTRY_TLS_CA"), "file with the certificate of who signed the daemon's")
	fs.StringVar(&env.TLS.Cert, "tls-cert", os.Getenv("GANTRY_TLS_CERT"), "file with this client's certificate")
	fs.StringVar(&env.TLS.Key, "tls-key", os.Getenv("GANTRY_TLS_KEY"), "file with this client's key")

	root.AddCommand(
		cli.Noun("container", "Make, run, join and show containers", []string{"containers"}, containers.Verbs(env)...),
		cli.Noun("image", "Fetch, name, show and remove images", nil, images.Verbs(env)...),
		cli.Noun("network", "Make, show and remove networks", nil, networks.Verbs(env)...),
		cli.Noun("volume", "Make, show and remove volumes", nil, volumes.Verbs(env)...),
		cli.Noun("snapshot", "Show the filesystems that storage drivers hold", nil, snapshots.Verbs(env)...),
		cli.Noun("plugin", "Show and restart driver processes", nil, plugins.Verbs(env)...),
		cli.Noun("system", "Show and check the daemon as a whole", nil, system.Verbs(env)...),
		system.NewEventsCommand(env), system.NewInfoCommand(env), newInspectCommand(env), newVersionCommand(env),
	)
	addShortcuts(root, env)
	return root
}

// flagError makes a usage error of a bad flag. Of run and exec it is 125, as docker has it.
func flagError(cmd *cobra.Command, err error) error {
	code := 2
	switch cmd.Name() {
	case "run", "exec":
		code = 125
	}
	return &cli.ExitError{Code: code, Err: fmt.Errorf("%w; see %q", err, cmd.CommandPath()+" --help")}
}

// addShortcuts puts the verbs that hands know at the top level.
func addShortcuts(root *cobra.Command, env *cli.Env) {
	for _, c := range containers.Verbs(env) {
		switch c.Name() {
		case "prune", "inspect":
			continue
		case "ls":
			c.Use, c.Aliases = "ps [flags]", nil
		case "rm":
			c.Aliases = nil
		}
		root.AddCommand(c)
	}
	for _, c := range images.Verbs(env) {
		switch c.Name() {
		case "pull", "tag", "history":
		case "ls":
			c.Use, c.Aliases = "images [flags] [REPOSITORY[:TAG]]", nil
		case "rm":
			c.Use, c.Aliases = "rmi [flags] IMAGE...", nil
		default:
			continue
		}
		root.AddCommand(c)
	}
}

func envOr(key, otherwise string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return otherwise
}

func newVersionCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the versions of this tool and of the daemon",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, _ = fmt.Fprintf(env.Out, "gantry   %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			i, err := env.System().Info(cmd.Context(), &systemv1.InfoRequest{})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Out, "gantryd  %s (API %s)\n", i.GetVersion(), i.GetApi())
			return err
		},
	}
}
