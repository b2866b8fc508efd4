"""Conversion of the manual from Markdown to HTML: supported markup; anything else is plain text."""

import unittest

from pigeonpost.views.manual import pages, read_page, render


class Rendering(unittest.TestCase):
    def test_headings_have_the_anchors_that_links_name(self):
        self.assertEqual(render("# A Page"), '<h1 id="a-page">A Page</h1>')
        self.assertEqual(render("### With `code`, too"), '<h3 id="with-code-too">With <code>code</code>, too</h3>')

    def test_lines_of_a_paragraph_are_joined(self):
        self.assertEqual(render("one\ntwo\n\nthree"), "<p>one two</p>\n<p>three</p>")

    def test_bullets_and_numbers_become_lists(self):
        bullets, numbers = render("- one\n  goes on\n- two\n\n1. three\n2. four").split("\n<ol>")
        self.assertEqual(bullets, "<ul><li>one goes on</li>\n<li>two</li>\n</ul>")
        self.assertEqual(numbers, "<li>three</li>\n<li>four</li>\n</ol>")

    def test_quoted_lines_become_a_blockquote(self):
        self.assertEqual(render("> *a*\n> b"), "<blockquote><p><em>a</em> b</p></blockquote>")

    def test_indented_code_is_left_as_it_is(self):
        self.assertEqual(render("Run:\n\n    a  *b* <c>\n      d"), "<p>Run:</p>\n<pre>a  *b* &lt;c&gt;\n  d</pre>")

    def test_tables_have_headings_and_cell_labels(self):
        self.assertEqual(
            render("| a | b |\n|---|---|\n| `x\\|y` | **2** |"),
            '<table class="list"><thead><tr><th>a</th><th>b</th></tr></thead><tbody>\n<tr><td data-label="a">'
            '<span><code>x|y</code></span></td><td data-label="b"><span><b>2</b></span></td></tr>\n</tbody></table>',
        )

    def test_a_column_without_a_head_has_no_heading(self):
        self.assertIn("<thead><tr><td></td><th>b</th></tr></thead>", render("| | b |\n|---|---|\n| x | y |"))

    def test_only_links_to_known_pages_are_rendered(self):
        known = ("web.md",)
        self.assertEqual(render("[a](web.md#tls)", known), '<p><a href="/help/web.md#tls">a</a></p>')
        self.assertEqual(render("[a](#tls)", known), '<p><a href="#tls">a</a></p>')
        for to in ("gone.md", "../README.md", "https://example.org/", "javascript:alert", "//x/web.md", "/exit"):
            self.assertEqual(render(f"[a]({to})", known), "<p>a</p>", to)

    def test_html_in_markdown_is_escaped(self):
        for text in ("<script>", "[<b>](web.md)", "`<b>`", "**<b>**", "# <b>", "- <b>", "| <b> |", '    "<b>'):
            found = render(text, ("web.md",))
            self.assertIn("&lt;", found)
            self.assertEqual(found.count("<b>"), text.count("**") // 2, text)

    def test_asterisks_without_a_partner_are_plain_text(self):
        self.assertEqual(render("2 * 3 * 4, *.md, a*b*c"), "<p>2 * 3 * 4, *.md, a*b*c</p>")

    def test_unfinished_markup_is_accepted(self):
        for text in ("`a", "[a](", "**a", "*a", "|", "|---|", "#", "-", "1.", "    "):
            render(text)

    def test_every_page_of_the_manual_is_rendered(self):
        self.assertGreater(len(pages()), 10)
        for name in pages():
            found = render(read_page(name), pages())
            self.assertTrue(found.startswith("<h1 "), name)
            self.assertNotIn("|---", found, name)
            self.assertNotRegex(found, r"\]\([a-z]", name)


if __name__ == "__main__":
    unittest.main()
