package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Confirm asks whether to go on. Where stdin is no terminal nobody could answer, and the
// command is refused with the flag that goes on without asking.
func (e *Env) Confirm(what string) (bool, error) {
	if _, ok := e.InTerminal(); !ok {
		return false, Usagef("%s stdin is no terminal, so nobody can be asked; add --force", what)
	}
	_, _ = fmt.Fprintf(e.Err, "%s\nGo on? [y/N] ", what)
	line, err := bufio.NewReader(e.In).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) { // the end of input is an answer: no
		return false, fmt.Errorf("read answer: %w", err)
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", nil
}
