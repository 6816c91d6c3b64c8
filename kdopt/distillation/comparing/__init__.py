"""How far a student follows its teacher."""
