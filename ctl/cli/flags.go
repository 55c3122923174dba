package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Filters parses the values of --filter: key=value.
func Filters(values []string) ([]*typesv1.Filter, error) {
	var fs []*typesv1.Filter
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			return nil, Usagef("--filter %q: write key=value, as in --filter name=web", v)
		}
		fs = append(fs, &typesv1.Filter{Key: key, Value: strings.TrimSpace(value)})
	}
	return fs, nil
}

// Labels parses the values of --label: key[=value].
func Labels(values []string) (map[string]string, error) {
	m := map[string]string{}
	for _, v := range values {
		key, value, _ := strings.Cut(v, "=")
		if key == "" {
			return nil, Usagef("--label %q: the key is missing; write key=value", v)
		}
		m[key] = value
	}
	return m, nil
}

// MinArgs wants at least n arguments, and says what the command takes if they are not there.
func MinArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return Usagef("%q needs at least %d argument(s); see %q", cmd.CommandPath(), n, cmd.CommandPath()+" --help")
	}
}

// ExactArgs wants n arguments.
func ExactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return Usagef("%q needs exactly %d argument(s) and got %d; see %q", cmd.CommandPath(), n, len(args), cmd.CommandPath()+" --help")
	}
}

// NoArgs wants none.
func NoArgs(cmd *cobra.Command, args []string) error { return ExactArgs(0)(cmd, args) }

// Noun makes the command of a noun, which only groups its verbs.
func Noun(use, short string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Aliases: aliases,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return Usagef("%q is no verb of %q; see %q", args[0], cmd.CommandPath(), cmd.CommandPath()+" --help")
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(verbs...)
	return c
}

// EnvFile reads the KEY=VALUE lines of a file; a line that is only KEY takes the value of this
// process's environment, as --env KEY does.
func EnvFile(path string) ([]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, Usagef("read --env-file: %w", err)
	}
	var env []string
	for i, line := range strings.Split(strings.TrimPrefix(string(raw), "\ufeff"), "\n") {
		line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t") // spaces at the end belong to the value
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		kv, ok, err := EnvVar(line)
		if err != nil {
			return nil, Usagef("read --env-file %s: line %d: %w", path, i+1, err)
		}
		if ok {
			env = append(env, kv)
		}
	}
	return env, nil
}

// EnvVar turns one --env value into KEY=VALUE; KEY alone takes the value of this process's
// environment and is left out (ok is false) where there is none.
func EnvVar(v string) (kv string, ok bool, err error) {
	key, _, has := strings.Cut(v, "=")
	if key == "" || strings.ContainsAny(key, " \t\x00") {
		return "", false, fmt.Errorf("%q: a variable needs a name without spaces; write KEY=VALUE", v)
	}
	if has {
		return v, true, nil
	}
	value, ok := os.LookupEnv(key)
	return key + "=" + value, ok, nil
}
