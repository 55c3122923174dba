// Package images is the image noun of the gantry command: one file a verb.
package images

import (
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
)

// Verbs returns the commands of the noun, in the order that help lists them.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{
		newPullCommand(env),
		newListCommand(env),
		newInspectCommand(env),
		newHistoryCommand(env),
		newTagCommand(env),
		newRemoveCommand(env),
	}
}
