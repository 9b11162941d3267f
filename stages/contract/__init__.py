"""What every stage is given: its parameters, its inputs, the place to write to, the tracker."""
